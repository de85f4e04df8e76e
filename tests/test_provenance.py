"""What a run's bits depend on is told, and a changed file is seen."""

from minisft.io import provenance


def test_machine_says_what_bits_depend_on(tmp_path):
    found = provenance.environment()
    assert found["versions"]["numpy"] and found["processor"] and found["threads"]


def test_fingerprint_sees_a_change(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("a")
    first = provenance.file_sha256(file)
    file.write_text("b")
    assert provenance.file_sha256(file) != first and len(first) == 64
    assert provenance.file_sha256(None) is None
