"""Which files of a folder count as which part."""

from pathlib import Path

from safetensors.torch import save_file

from magihuman_core.loading.folder import find_models
from magihuman_core.weights.open import open_checkpoint

from .golden import small_model, write_index


def split_network(folder: Path, names: tuple[str, str]) -> None:
    tensors = small_model("network")
    keys = sorted(tensors)
    halves = dict(zip(names, (keys[::2], keys[1::2]), strict=True))
    for name, half in halves.items():
        save_file({key: tensors[key] for key in half}, folder / name)
    write_index(folder, {key: name for name, half in halves.items() for key in half})


def test_a_loose_file_beside_a_sharded_network_is_found(tmp_path):
    for index, names in enumerate((("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
                                   ("first.safetensors", "second.safetensors"))):
        folder = tmp_path / str(index) / "base"
        folder.mkdir(parents=True)
        split_network(folder, names)
        save_file(small_model("video_vae"), folder / "wan2.2_vae.safetensors")
        models = find_models(folder)
        assert dict(models) == {"base": folder, "video_vae": folder / "wan2.2_vae.safetensors"}
        assert not models.problems


def test_a_damaged_index_is_named_and_its_shards_are_not_taken_alone(tmp_path):
    split_network(tmp_path, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    (tmp_path / "model.safetensors.index.json").write_text("{")
    models = find_models(tmp_path)
    assert not models
    assert "index" in models.problems[tmp_path]


def test_comfyuis_short_ending_of_safetensors_counts(tmp_path):
    for folder in (tmp_path / "distill", tmp_path / "text_encoder"):
        folder.mkdir()
    save_file(small_model("network"), tmp_path / "distill/mine.sft")
    save_file(small_model("text_encoder"), tmp_path / "text_encoder/mine.SFT")
    models = find_models(tmp_path)
    assert dict(models) == {"distilled": tmp_path / "distill/mine.sft",
                            "text_encoder": tmp_path / "text_encoder/mine.SFT"}
    assert dict(open_checkpoint(tmp_path / "distill", "network")), "the only weight file stands for its folder"
