"""The export example writes files that compute what the model does, and that are small."""

import pytest

from examples import export_model


@pytest.mark.slow
def test_export_model(tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    sizes = export_model.main(tmp_path, steps=40)
    assert sizes["dense.safetensors"] > 4 * 266_610
    assert sizes["sparse.safetensors"] < 75_000  # 13,310 active weights of 4 bytes, and positions
    assert sizes["model.bin"] < 8 * 13_720 + 15_000
    assert sizes["program.bin"] < 10_000
    table = capsys.readouterr().out.rpartition("largest difference")[2].split("\n")[1:5]
    differences = {line.split()[0]: float(line.split()[-1]) for line in table}
    assert max(differences.values()) < 1e-5
    for name in ("dense.safetensors", "sparse.safetensors", "program.bin"):
        assert differences[name] == 0.0, name
