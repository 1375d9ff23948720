"""Which files of a folder count as which part."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from magihuman_core.loading.folder import MissingPartsError, find_models
from magihuman_core.loading.ready import check_models
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.sizes import byte_size
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint

from .golden import small_model


def split_network(folder: Path, names: tuple[str, str], index: str = "model") -> None:
    """A network in two files; index: the name of the file that lists them, "" for none."""
    tensors = small_model("network")
    keys = sorted(tensors)
    halves = dict(zip(names, (keys[::2], keys[1::2]), strict=True))
    for name, half in halves.items():
        save_file({key: tensors[key] for key in half}, folder / name)
    if index:
        weight_map = {key: name for name, half in halves.items() for key in half}
        (folder / f"{index}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def shard_names(stem: str) -> tuple[str, str]:
    return f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"


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


def test_the_cache_of_hugging_face_is_searched_and_what_lies_too_deep_is_said(tmp_path):
    place = tmp_path / "hub/models--GAIR--daVinci-MagiHuman/snapshots/0a1b2c/distill"
    place.mkdir(parents=True)
    (tmp_path / "hub/models--GAIR--daVinci-MagiHuman/blobs").mkdir()
    blob = tmp_path / "hub/models--GAIR--daVinci-MagiHuman/blobs/0123"
    save_file(small_model("network"), blob)
    (place / "model.safetensors").symlink_to(blob)
    deep = tmp_path / "hub/a/b/c/base"
    deep.mkdir(parents=True)
    save_file(small_model("network"), deep / "model.safetensors")
    models = find_models(tmp_path / "hub")
    assert dict(models) == {"distilled": place / "model.safetensors"}
    assert models.unsearched == [deep]
    told = f"Only 3 folders below that one are searched, and not {deep}."
    with pytest.raises(MissingPartsError, match=r"the base network is missing.*base=FILE\. " + re.escape(told)):
        models.network("base")
    lines, _ = check_models(parse_wish("text"), models)
    assert told in lines
    assert f"deeper     1 folders that lie more than 3 below it are not looked into, the first is {deep}" in describe(
        tmp_path / "hub")
    (tmp_path / "hub/loop").symlink_to(".", target_is_directory=True)
    (tmp_path / "hub/models--loop").symlink_to(".", target_is_directory=True)
    assert set(find_models(tmp_path / "hub")) == {"distilled"}, "and it ends"


def test_comfyuis_short_ending_of_safetensors_counts(tmp_path):
    for folder in (tmp_path / "distill", tmp_path / "text_encoder"):
        folder.mkdir()
    save_file(small_model("network"), tmp_path / "distill/mine.sft")
    save_file(small_model("text_encoder"), tmp_path / "text_encoder/mine.SFT")
    models = find_models(tmp_path)
    assert dict(models) == {"distilled": tmp_path / "distill/mine.sft",
                            "text_encoder": tmp_path / "text_encoder/mine.SFT"}
    assert dict(open_checkpoint(tmp_path / "distill", "network")), "the only weight file stands for its folder"


@pytest.mark.parametrize("indexed", [False, True])
def test_shards_have_a_role_by_their_own_name(indexed, tmp_path):
    """Not only by that of their folder, and where it holds several, each has its own."""
    split_network(tmp_path, shard_names("magihuman_distill"), "magihuman_distill" * indexed)
    assert dict(find_models(tmp_path)) == {"distilled": tmp_path}
    split_network(tmp_path, shard_names("magihuman_base"), "magihuman_base" * indexed)
    models = find_models(tmp_path)
    ending = ".safetensors.index.json" if indexed else "-00001-of-00002.safetensors"
    assert dict(models) == {"base": tmp_path / f"magihuman_base{ending}",
                            "distilled": tmp_path / f"magihuman_distill{ending}"}
    for path in models.values():
        assert set(open_checkpoint(path, "network")) == set(small_model("network"))
    report = describe(tmp_path)
    assert f"{tmp_path / f'magihuman_base{ending}'}\n  is         a MagiHuman network (base" in report
    assert "(distilled" in report and "problem" not in report


def test_shards_without_an_index_beside_other_files_are_found(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    split_network(folder, shard_names("diffusion"), "")
    save_file(small_model("video_vae"), folder / "wan2.2_vae.safetensors")
    models = find_models(tmp_path)
    assert dict(models) == {"base": folder / shard_names("diffusion")[0],
                            "video_vae": folder / "wan2.2_vae.safetensors"}
    assert not models.problems
    assert "problem" not in describe(tmp_path)
    split_network(folder, shard_names("diffusion"), "")
    split_network(folder, shard_names("distill"), "distill")
    assert set(find_models(tmp_path)) == {"base", "distilled", "video_vae"}, "one of the two has an index"


def test_a_network_whose_index_names_another_folder_is_there_once_in_its_full_size(tmp_path):
    (tmp_path / "distill/weights").mkdir(parents=True)
    split_network(tmp_path / "distill", tuple(f"weights/{name}" for name in shard_names("model")))
    models = find_models(tmp_path)
    assert dict(models) == {"distilled": tmp_path / "distill"}
    size = sum(path.stat().st_size for path in (tmp_path / "distill").rglob("*.*"))
    lines, _ = check_models(parse_wish("text"), models)
    assert f"  the distilled network: {tmp_path / 'distill'} ({byte_size(size)})" in lines
    assert describe(tmp_path).count("a MagiHuman network") == 1
