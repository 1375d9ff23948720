"""What starting ComfyUI with the pack costs, and which ComfyUI it wants."""

import comfyui_version
import pytest
from magihuman_pack.nodes import require_version


def test_importing_the_pack_takes_less_than_300_ms_of_cpu(import_seconds):
    assert import_seconds < 0.3


def test_an_older_comfyui_is_refused_by_name(monkeypatch):
    require_version()
    monkeypatch.setattr(comfyui_version, "__version__", "0.32.9")
    with pytest.raises(RuntimeError, match=r"0\.33[^\n]*0\.32\.9|0\.32\.9[^\n]*0\.33"):
        require_version()
