"""The table of a file's bytes, by eye."""

from jaxsparse.export.sizes import LeafSize, SizeReport


def test_the_table():
    report = SizeReport(
        (
            LeafSize("conv/kernel", (3, 3, 1, 4), "bits", 9, 36, 144, 41),
            LeafSize("fc/bias", (10,), "dense", 10, 10, 40, 40),
            LeafSize("fc/kernel", (100, 10), "csr", 20, 1000, 4000, 111),
            LeafSize("norm/scale", (6,), "dense", 6, 6, 24, 24),
        ),
        header_bytes=300,
    )
    assert (report.dense_bytes, report.file_bytes) == (4208, 516)
    assert report.ratio == 516 / 4208
    assert str(report).splitlines() == [
        "leaf            stored as  weights  active  dense bytes  bytes   ratio",
        "conv/kernel     bits            36       9          144     41  0.2847",
        "fc/kernel       csr          1,000      20        4,000    111  0.0278",
        "2 dense leaves  dense           16      16           64     64  1.0000",
        "header                                                     300",
        "file                         1,052      45        4,208    516  0.1226",
    ]


def test_nothing_in_it():
    report = SizeReport((), header_bytes=8)
    assert (report.dense_bytes, report.file_bytes, report.ratio) == (0, 8, 8.0)
    assert len(str(report).splitlines()) == 3
