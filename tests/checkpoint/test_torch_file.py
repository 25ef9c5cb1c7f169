import shutil

import pytest
from safetensors.numpy import load_file

from inset_jax.checkpoint import tensors
from inset_jax.checkpoint.errors import Damaged
from tests.checkpoint.folders import FOLDER, contents, inward, outward


def test_without_pytorch_the_error_says_what_to_install(folder, monkeypatch):
    (folder / "ema.safetensors").rename(folder / "ema.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"ema.pt: reading .pt files takes PyTorch: pip install"):
        tensors.open_folder(folder)


@pytest.mark.parametrize("file, wrap", [("ema.pt", False), ("pytorch_model.bin", True)])
def test_pytorchs_files_convert_like_safetensors(folder, tmp_path, file, wrap):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `torch`)")
    (folder / "ema.safetensors").unlink()
    found = load_file(FOLDER / "ema.safetensors")
    found = {n: torch.from_numpy(t).to(torch.bfloat16) for n, t in found.items()}
    torch.save({"state_dict": found} if wrap else found, folder / file)
    inward(folder, tmp_path / "orbax")
    outward(tmp_path / "orbax", tmp_path / "back")
    from safetensors.torch import load_file as load_torch

    back = load_torch(tmp_path / "back" / "ema.safetensors")
    assert back.keys() == found.keys()
    for name, tensor in found.items():
        assert back[name].dtype == torch.bfloat16 and torch.equal(back[name], tensor), name
    beside = {n: c for n, c in contents(folder).items() if n != file}
    assert contents(tmp_path / "back").items() >= beside.items()


def test_a_truncated_file_of_pytorch_is_damaged(folder, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `torch`)")
    (folder / "ema.safetensors").unlink()
    torch.save({"a": torch.zeros(1000)}, folder / "ema.pt")
    content = (folder / "ema.pt").read_bytes()
    (folder / "ema.pt").write_bytes(content[:-500])
    with pytest.raises(Damaged, match=r"ema.pt: damaged or no file of PyTorch"):
        inward(folder, tmp_path / "orbax")
    torch.save([1, 2], folder / "ema.pt")
    with pytest.raises(ValueError, match="expected a dict of tensors by name"):
        inward(folder, tmp_path / "orbax")
    shutil.copy(FOLDER / "ema.safetensors", folder)
    inward(folder, tmp_path / "orbax")  # which is preferred
