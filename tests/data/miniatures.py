"""Rows and images of the miniature data sets."""

from pathlib import Path

from PIL import Image

ISIC_COLUMNS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
# image, class, lesion; ids are out of order on purpose
ISIC_ROWS = [
    ("ISIC_0000009", "NV", "HAM_1"),
    ("ISIC_0000001", "NV", "HAM_1"),
    ("ISIC_0000002", "MEL", "HAM_2"),
    ("ISIC_0000003", "BKL", "HAM_3"),
    ("ISIC_0000004", "BCC", "HAM_4"),
    ("ISIC_0000005", "AKIEC", "HAM_5"),
    ("ISIC_0000006", "VASC", "HAM_6"),
    ("ISIC_0000007", "DF", "HAM_7"),
    ("ISIC_0000008", "DF", "HAM_7"),
]


def write_jpeg(path: Path, grey: int, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path, quality=95)
