"""The text encoder in little memory: layers that come in when they are needed, weights in few bits."""

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core import InputError, load_text_encoder
from magihuman_core.runtime.streaming import BlockStreamer, streamer_of

from .golden import TEXT_CONFIG, small_model


@pytest.mark.parametrize("layers", [0, 1, 2, 99, None])
@pytest.mark.parametrize("stream_from", ["file", "memory"])
def test_streamed_layers_give_the_same_bits(layers, stream_from, tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_file(small_model("text_encoder"), path)
    whole, streamed = (load_text_encoder(path, config=TEXT_CONFIG, dtype=torch.bfloat16, **options) for options in
                       ({}, {"resident_layers": layers, "stream_from": stream_from}))
    count = whole.config.num_hidden_layers
    absent = {int(key.split(".")[2]) for key, value in streamed.state_dict().items() if value.is_meta}
    assert len(absent) == max(0, count - (count if layers is None else layers))
    with torch.inference_mode():
        for ids in (torch.arange(1, 9)[None], torch.arange(3, 7)[None]):  # a prompt, and a negative one
            assert torch.equal(streamed(ids), whole(ids))
    streamer = streamer_of(streamed.encoder.layers)
    assert (streamer is None) == (not absent)
    if streamer:
        streamer.close()


def test_a_layer_comes_in_once_for_all_prompts(tmp_path, monkeypatch):
    path, tensors = tmp_path / "encoder.safetensors", small_model("text_encoder")
    for key in [key for key in tensors if ".layers." in key]:  # as there are two buffers, two layers would both stay
        tensors[key.replace(".layers.0.", ".layers.2.").replace(".layers.1.", ".layers.3.")] = tensors[key].clone()
    save_file(tensors, path)
    config = {**TEXT_CONFIG, "layer_types": 2 * TEXT_CONFIG["layer_types"]}
    encoder = load_text_encoder(path, config=config, dtype=torch.bfloat16, resident_layers=0)
    texts = [torch.arange(1, n)[None] for n in (9, 4, 30)]  # the last is longer than a sliding window
    assert encoder.config.sliding_window < 29
    begun, begin = [], BlockStreamer._begin
    monkeypatch.setattr(BlockStreamer, "_begin", lambda self, index: begun.append(index) or begin(self, index))
    with torch.inference_mode():
        together = encoder.forward_many(texts)
        assert begun == [0, 1, 2, 3, 0]  # the first one again, for a pass to come
        for ids, hidden in zip(texts, together, strict=True):
            assert torch.equal(hidden, encoder(ids))


def test_a_file_as_it_is_stored_streams_as_it_is_stored(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_file(small_model("text_encoder"), path)
    whole, streamed = (load_text_encoder(path, config=TEXT_CONFIG, resident_layers=n) for n in (None, 0))
    with torch.inference_mode():
        assert torch.equal(streamed(torch.arange(9)[None]), whole(torch.arange(9)[None]))
    with pytest.raises(InputError, match="resident_layers is -1"):
        load_text_encoder(path, config=TEXT_CONFIG, resident_layers=-1)


@pytest.mark.parametrize("resident", [None, 0])
def test_weights_in_bf16_computed_in_fp32(resident):
    """For devices without bf16: half the memory of fp32, and the numbers that fp32 computes from such weights."""
    source = {key: value.bfloat16().float() for key, value in small_model("text_encoder").items()}
    exact = load_text_encoder(source, config=TEXT_CONFIG, dtype=torch.float32)
    narrow = load_text_encoder(source, config=TEXT_CONFIG, dtype=torch.bfloat16, compute_dtype=torch.float32,
                               resident_layers=resident)
    assert {tensor.dtype for tensor in narrow.state_dict().values()} == {torch.bfloat16}
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        assert narrow(ids).dtype == torch.float32
        torch.testing.assert_close(narrow(ids), exact(ids), atol=1e-6, rtol=1e-6)
