"""The text encoder against recorded numbers and transformers, and its tokenizer's habits."""

import json
import logging
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, processors

from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.folder import DEMO
from magihuman_core.loading.text_encoder import load_text_encoder
from magihuman_core.text import encoder as text_encoder
from magihuman_core.text.config import TextEncoderConfig
from magihuman_core.text.encoder import T5GemmaEncoder, TextEncoder
from magihuman_core.weights.text_encoder_keys import encoder_keys

from .golden import DATA, real_model, relative, small_model
from .golden import TEXT_CONFIG as CONFIG


@pytest.fixture(scope="module")
def golden():
    return load_file(DATA / "t5gemma" / "tiny.safetensors")


@pytest.fixture(scope="module")
def weights():
    return small_model("text_encoder")


@pytest.fixture(scope="module")
def tokenizer():
    """Gemma's kind of tokenizer in small: BPE on text with its spaces marked, BOS in the template."""
    letters = "\u2581abcdefghijklmnopqrstuvwxyz.,"
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
    vocabulary |= {letter: index for index, letter in enumerate(letters, 4)}
    vocabulary |= {"he": 40, "\u2581t": 41, "\u2581the": 42}
    merges = [("h", "e"), ("\u2581", "t"), ("\u2581t", "he")]
    result = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))  # noqa: S106 (not a password)
    result.normalizer = normalizers.Replace(" ", "\u2581")
    result.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    result.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    return result


@torch.inference_mode()
def test_vectors(golden, weights):
    plain = load_text_encoder(weights, config=CONFIG)
    capped = load_text_encoder(weights, config=CONFIG | {"use_attn_logit_softcapping": True})
    for case in json.loads((DATA / "t5gemma" / "tiny.json").read_text())["cases"]:
        ids = golden[case + ".input_ids"]
        hidden = plain(ids)
        assert (hidden - golden[case + ".last_hidden_state_sdpa"]).abs().max() <= 1e-4
        assert (capped(ids) - golden[case + ".last_hidden_state_eager"]).abs().max() <= 1e-4
        # Rounding through fp16 turns the smallest difference into one unit of fp16.
        expected = golden[case + ".pipeline_value_f16_rounded"].reshape(hidden.shape)
        finished = plain.finish(hidden, ids)
        assert finished.dtype == torch.float32 and torch.equal(finished, finished.half().float())
        assert torch.allclose(finished, expected, atol=1e-4, rtol=1e-3)


WINDOW = 5  # tokens, of sliding attention


def oracle_config(**options):
    import transformers
    from transformers import T5GemmaConfig, T5GemmaModuleConfig

    # transformers 5 counts a token at the window's distance in, while version 4, which the authors ran, does not.
    inclusive = int(transformers.__version__.split(".")[0]) >= 5
    # Two objects: of one the decoder would make a causal encoder.
    encoder, decoder = (T5GemmaModuleConfig(**{
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": WINDOW - inclusive,
        "query_pre_attn_scalar": 10, "rope_theta": 500.0} | options) for _ in range(2))
    return T5GemmaConfig(encoder=encoder, decoder=decoder, is_encoder_decoder=False)


def given_config(model):
    """The model's config.json, with the window as the authors' version of transformers counts it, and a soft cap."""
    config = model.config.to_dict()
    config["encoder"]["sliding_window"] = WINDOW
    config["encoder"]["attn_logit_softcapping"] = config["encoder"]["attn_logit_softcapping"] or 2.0
    return config


def oracle(attention, **options):
    from transformers import T5GemmaEncoderModel, T5GemmaPreTrainedModel

    config = oracle_config(**{"attn_logit_softcapping": None} | options)
    config._attn_implementation = config.encoder._attn_implementation = attention
    torch.manual_seed(5)
    # transformers 5 refuses SDPA, since it has no soft cap; the released pipeline runs it, without.
    with mock.patch.object(T5GemmaPreTrainedModel, "_supports_sdpa", True):
        model = T5GemmaEncoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3 if "norm" in name else 0.15)
    return model


@pytest.mark.parametrize("length", [1, 5, 6, 23])
@torch.inference_mode()
def test_transformers_agrees(length):
    model = oracle("sdpa")
    encoder = load_text_encoder(model.state_dict(), config=given_config(model))
    ids = torch.randint(0, 97, (1, length))
    assert torch.allclose(encoder(ids), model(ids).last_hidden_state, atol=1e-5)


@torch.inference_mode()
def test_transformers_agrees_with_soft_cap_and_given_layer_types():
    model = oracle("eager", attn_logit_softcapping=2.0,
                   layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"])
    config = given_config(model)
    ids = torch.randint(0, 97, (1, 19))
    expected = model(ids).last_hidden_state
    plain = load_text_encoder(model.state_dict(), config=config)
    config["encoder"]["use_attn_logit_softcapping"] = True
    capped = load_text_encoder(model.state_dict(), config=config)
    assert torch.allclose(capped(ids), expected, atol=1e-5)
    assert not torch.allclose(plain(ids), expected, atol=1e-2)


@torch.inference_mode()
def test_bfloat16_rounds_where_transformers_does():
    model = oracle("sdpa")
    encoder = load_text_encoder(model.state_dict(), config=given_config(model), dtype=torch.bfloat16)
    frequencies = model.encoder.rotary_emb.inv_freq.clone()
    model = model.to(torch.bfloat16)
    model.encoder.rotary_emb.inv_freq = frequencies       # as from_pretrained leaves them
    ids = torch.randint(0, 97, (1, 23))
    assert relative(encoder(ids), model(ids).last_hidden_state) < 1e-2


def test_real_keys_and_configuration():
    stored = json.loads((DATA / "real_config" / "t5gemma_encoder_keys.json").read_text())
    real = real_model("text_encoder")
    decoder = {"model.decoder.layers.0.pre_self_attn_layernorm.weight": torch.empty(3584),
               "lm_head.out_proj.weight": torch.empty(5)}
    assert set(encoder_keys({"model." + key: value for key, value in real.items()} | decoder)) == set(real)
    config = TextEncoderConfig.from_mapping(stored["config"] | {"layer_types": stored["layer_types"]})
    assert [config.slides(i) for i in range(42)] == [TextEncoderConfig().slides(i) for i in range(42)]
    assert config == TextEncoderConfig(layer_types=tuple(stored["layer_types"]))


@pytest.mark.parametrize("prefix", ["model.encoder.", "encoder.", ""])
def test_key_prefixes_and_writing_back(weights, prefix):
    given = {prefix + key.removeprefix("encoder."): value for key, value in weights.items()}
    given["decoder.layers.0.pre_self_attn_layernorm.weight"] = torch.ones(3)
    written = load_text_encoder(given, config=CONFIG).state_dict()
    assert set(written) == set(weights)
    assert all(torch.equal(written[key], weights[key]) for key in weights)


def test_sizes_come_from_shapes(weights):
    shapes_tell = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                   "intermediate_size", "vocab_size")
    rest = {key: value for key, value in CONFIG.items() if key not in shapes_tell}
    encoder = load_text_encoder(weights, config=rest)
    assert {name: getattr(encoder.config, name) for name in shapes_tell} == {
        name: CONFIG[name] for name in shapes_tell}


def test_config_and_tokenizer_beside_the_weights(weights, tokenizer, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": "t5gemma", "encoder": CONFIG | {"model_type": "t5_gemma_module"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = load_text_encoder(weights, tokenizer, CONFIG).encode("the thing")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        encoder = load_text_encoder(source)
        assert encoder.config == TextEncoderConfig.from_mapping(CONFIG)
        assert torch.equal(encoder.encode("the thing"), expected)
    (tmp_path / "config.json").unlink()
    save_file(weights, tmp_path / "model.safetensors", metadata={"config": json.dumps(config)})
    assert load_text_encoder(tmp_path).config == TextEncoderConfig.from_mapping(CONFIG)


@torch.inference_mode()
def test_no_bos_no_eos_no_padding_no_truncation(weights, tokenizer):
    assert tokenizer.encode("the").ids[0] == 2                     # the template would add them
    padded = Tokenizer.from_str(tokenizer.to_str())
    padded.enable_padding(length=20)
    padded.enable_truncation(3)
    for given in (tokenizer, padded):
        encoder = load_text_encoder(weights, given, CONFIG)
        ids = encoder.tokenize("a thing, the end")
        assert ids.dtype == torch.long
        assert [given.id_to_token(index) for index in ids[0].tolist()] == [
            "a", "\u2581t", "h", "i", "n", "g", ",", "\u2581the", "\u2581", "e", "n", "d"]
        hidden = encoder.encode("a thing, the end")
        assert hidden.shape == (1, ids.shape[1], 64) and hidden.dtype == torch.float32
        assert torch.equal(hidden, encoder(ids).half().float())
    assert padded.padding is not None and padded.truncation is not None     # the caller's is left as it is


@torch.inference_mode()
def test_an_encoder_in_8_bits_is_used_as_it_is_stored():
    """The demo's own, whose other weights are in half precision."""
    folder = DEMO / "text_encoder"
    stored, exact = (load_text_encoder(folder, dtype=dtype).encode("a happy woman") for dtype in (None, torch.float32))
    assert 0 < (stored - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_long_prompt_is_cut_at_640_with_a_warning(weights, tokenizer, caplog):
    encoder = load_text_encoder(weights, tokenizer, CONFIG)
    text = "a" * 640
    with caplog.at_level(logging.WARNING, "magihuman_core"):
        assert encoder.encode(text).shape[1] == 640
        assert not caplog.records
        hidden = encoder.encode(text + "xyz")
    assert "The prompt has 643 tokens, of which 640 can be used: from 'x y z' on" in caplog.text
    assert hidden.shape[1] == 640
    # Cut after encoding: what is lost has been read, as by the model's authors.
    assert torch.equal(hidden, encoder(encoder.tokenize(text + "xyz")).half().float()[:, :640])
    assert not torch.equal(hidden, encoder.encode(text))


def test_trimming_vectors(weights, monkeypatch):
    """The vectors pad as well; what is padding there is absent here."""
    tensors = load_file(DATA / "helpers" / "misc.safetensors")
    encoder = load_text_encoder(weights, config=CONFIG)
    text = tensors["pad_or_trim.x"]
    for limit in (3, 5, 9):
        monkeypatch.setattr(text_encoder, "TEXT_TOKENS", limit)
        length = int(tensors[f"pad_or_trim.{limit}.len"])
        result = encoder.finish(text, torch.zeros(1, 5))
        assert result.shape[1] == length
        assert torch.equal(result, tensors[f"pad_or_trim.{limit}.out"][:, :length].half().float())


def test_unusable_inputs_are_refused(weights, tokenizer, tmp_path):
    encoder = load_text_encoder(weights, tokenizer, CONFIG)
    for text in ("", " \n", None):
        with pytest.raises(InputError, match="empty"):
            encoder.encode(text)
    for ids in (torch.zeros(3).long(), torch.zeros(1, 0).long(), torch.zeros(1, 3)):
        with pytest.raises(InputError, match="ids"):
            encoder(ids)
    with pytest.raises(InputError, match="tokenizer"):
        load_text_encoder(weights, config=CONFIG).encode("hello")
    foreign = Tokenizer(models.WordLevel({"hello": 200}, unk_token="hello"))  # noqa: S106 (not a password)
    with pytest.raises(InputError, match=r"token 200.*200"):
        load_text_encoder(weights, foreign, CONFIG).encode("hello")
    with pytest.raises(InputError, match=r"nowhere.*no such"):
        load_text_encoder(weights, tmp_path / "nowhere", CONFIG)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        load_text_encoder(weights, tmp_path, CONFIG)
    with pytest.raises(InputError, match="hidden_activation"):
        load_text_encoder(weights, config=CONFIG | {"hidden_activation": "silu"})


def test_heads_and_layers_that_do_not_fit_the_weights_are_refused(weights):
    with pytest.raises(CheckpointError, match="head_dim"):
        load_text_encoder(weights)                                 # of the 9B encoder's heads of 256
    with pytest.raises(CheckpointError, match="layer_types"):
        load_text_encoder(weights, config=CONFIG | {"layer_types": ["full_attention"]})
    wrong = {key: value[:16] if "q_proj" in key else value for key, value in weights.items()}
    with pytest.raises(CheckpointError, match="do not go together"):
        load_text_encoder(wrong, config=CONFIG | {"head_dim": 16})


BAD_VALUES = [{"head_dim": "8"}, {"head_dim": 0}, {"head_dim": True}, {"head_dim": 1 << 64}, {"layer_types": 5},
              {"layer_types": ["full_attention", 1]}, {"layer_types": []}, {"encoder": [1]}, {"encoder": "x"},
              {"encoder": {"head_dim": 2.5}}, {"query_pre_attn_scalar": "x"}, {"query_pre_attn_scalar": -1},
              {"rms_norm_eps": float("nan")}, {"rope_theta": None},
              {"attn_logit_softcapping": "50"}, {"use_attn_logit_softcapping": 1}, {"sliding_window": float("inf")},
              {"hidden_activation": ["gelu"]}]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_VALUES, ids=str)
def test_config_values_that_cannot_be_run_are_refused(bad, weights, tmp_path):
    with pytest.raises(InputError, match="text encoder config"):
        TextEncoderConfig.from_mapping(CONFIG | bad)
    stored = json.dumps({"model_type": "t5_gemma_module"} | CONFIG | bad)
    save_file(weights, tmp_path / "a.safetensors", {"config": stored})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: text encoder config"):
        load_text_encoder(tmp_path / "a.safetensors")
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(stored)
    with pytest.raises(CheckpointError, match=r"config\.json: text encoder config"):
        load_text_encoder(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"", b"[1]", b"[" * 100_000, b'{"model_type": 3}', b" " * (1 << 21)],
                         ids=range(6))
def test_a_file_that_is_no_config_is_passed_over(content, weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="head_dim"):         # as without any config.json
        load_text_encoder(tmp_path / "a.safetensors")


def test_a_prompt_of_a_whole_book_is_refused_before_it_is_computed(weights, tokenizer, monkeypatch):
    encoder = load_text_encoder(weights, tokenizer, CONFIG)
    assert encoder.tokenize("a" * text_encoder.REFUSED_ABOVE).shape[1] == text_encoder.REFUSED_ABOVE
    monkeypatch.setattr(T5GemmaEncoder, "forward", None)
    with pytest.raises(InputError, match=r"50000 tokens.*4096"):
        encoder.encode("a" * 50_000)
    with pytest.raises(InputError, match=r"1,048,576 characters"):  # before it is even split
        encoder.encode("a" * (1 << 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_norm_rounds_where_transformers_rounds(dtype):
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaRMSNorm

    torch.manual_seed(0)
    oracle_norm = T5GemmaRMSNorm(48).to(dtype)
    oracle_norm.weight.normal_()
    norm = text_encoder.Norm(TextEncoderConfig.from_mapping({"hidden_size": 48}), dtype=dtype)
    norm.load_state_dict(oracle_norm.state_dict())
    x = (3 * torch.randn(200, 48)).to(dtype)
    assert norm(x).dtype == dtype
    differing = (norm(x) != oracle_norm(x)).float().mean()
    # In bf16 an fp32 sum in another order moves a few numbers over the edge; rounding elsewhere moves a quarter.
    assert differing < 0.005 if dtype == torch.bfloat16 else torch.allclose(norm(x), oracle_norm(x), atol=1e-6)


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    encoder = TextEncoder(CONFIG)
    encoder(torch.arange(12)[None]).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
