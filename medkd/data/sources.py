"""What publishers offer for download, and what to do where they ask for a form or a login.

Addresses as the publishers give them in 2026. Checksums are the publishers' own: those of DermaMNIST are in the package
`medmnist`, those of Dataverse in its listing. The ISIC archive and Mendeley publish none beside their files: there the
length and the checksums inside the archive are verified, and the file's SHA-256 is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import requests

from medkd.data.fetch import AGENT, TIMEOUT, Download
from medkd.errors import DataError

ISIC = "https://isic-challenge-data.s3.amazonaws.com/2018/"
MILK = "https://isic-archive.s3.amazonaws.com/challenges/milk10k/"
DATAVERSE = "https://dataverse.harvard.edu"
HAM_DOI = "doi:10.7910/DVN/DBW86T"
HAM_FILES = ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip", "HAM10000_metadata.csv")
PAD = "https://prod-dcd-datasets-cache-zipfiles.s3.eu-west-1.amazonaws.com/zr7vgbcyr2-1.zip"
MEDMNIST = "https://zenodo.org/records/10519652/files/"
DERMAMNIST_MD5 = {
    28: "0744692d530f8e62ec473284d019b0c7",
    64: "b70a2f5635c6199aeaa28c31d7202e1f",
    128: "2defd784463fa5243564e855ed717de1",
    224: "8974907d8e169bef5f5b96bc506ae45d",
}
NO_CHECKSUM = "about {size}; no checksum is published: length and archive are verified, and the SHA-256 is recorded"


@dataclass(frozen=True)
class Source:
    """Where a cohort comes from.

    Attributes:
        downloads: image side (0: the usual one) -> files to load; None where the publisher wants a form or a login.
        instructions: what to do then; {folder} and {name} are filled in.
        sizes: image sides that are published.
        note: said before consent is asked for.
    """

    downloads: Callable[[int], tuple[Download, ...]] | None = None
    instructions: str = ""
    sizes: tuple[int, ...] = ()
    note: str = ""


def dataverse(doi: str, files: tuple[str, ...], *, host: str = DATAVERSE) -> tuple[Download, ...]:
    """Downloads of these files of a Dataverse data set, with the sizes and MD5s of its listing.

    A table that Dataverse has converted is listed under another ending (`.tab`) and with the checksum of its original;
    so the original is loaded.

    Raises:
        DataError: the listing cannot be read, or lacks a file.
    """
    url = f"{host}/api/datasets/:persistentId/?persistentId={doi}"
    try:
        answer = requests.get(url, headers=AGENT, timeout=TIMEOUT)
        answer.raise_for_status()
        entries = [entry["dataFile"] for entry in answer.json()["data"]["latestVersion"]["files"]]
        offered = {PurePath(entry["filename"]).stem: entry for entry in entries}
        absent = [file for file in files if PurePath(file).stem not in offered]
        if not absent:
            return tuple(_listed(offered[PurePath(file).stem], file, host) for file in files)
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the listing {url} cannot be read ({error}); check the network and try again") from error
    raise DataError(f"{url} lists no {', '.join(absent)}; the publisher has changed the set, get it by hand")


def _listed(entry: dict[str, Any], file: str, host: str) -> Download:
    converted = "originalFileFormat" in entry
    return Download(
        f"{host}/api/access/datafile/{entry['id']}{'?format=original' if converted else ''}",
        file,
        entry.get("originalFileSize", 0) if converted else entry["filesize"],
        f"md5:{entry['md5']}" if entry.get("md5") else "",
    )


def _dermamnist(size: int) -> tuple[Download, ...]:
    size = size or 64
    file = "dermamnist.npz" if size == 28 else f"dermamnist_{size}.npz"
    return (Download(f"{MEDMNIST}{file}?download=1", file, checksum=f"md5:{DERMAMNIST_MD5[size]}"),)


_ISIC_FILES = (
    Download(f"{ISIC}ISIC2018_Task3_Training_Input.zip", "ISIC2018_Task3_Training_Input.zip"),
    Download(f"{ISIC}ISIC2018_Task3_Training_GroundTruth.zip", "ISIC2018_Task3_Training_GroundTruth.zip", unpack=True),
    Download(f"{ISIC}ISIC2018_Task3_Training_LesionGroupings.csv", "ISIC2018_Task3_Training_LesionGroupings.csv"),
)
_MILK_FILES = tuple(
    Download(f"{MILK}MILK10k_Training_{part}", f"MILK10k_Training_{part}")
    for part in ("Input.zip", "GroundTruth.csv", "Metadata.csv")
)
_MILK = Source(lambda size: _MILK_FILES, note=NO_CHECKSUM.format(size="0.3 GB"))

SOURCES: dict[str, Source] = {
    "isic2018": Source(lambda size: _ISIC_FILES, note=NO_CHECKSUM.format(size="2.8 GB")),
    "ham10000": Source(lambda size: dataverse(HAM_DOI, HAM_FILES)),
    "dermamnist": Source(_dermamnist, sizes=tuple(DERMAMNIST_MD5)),
    "milk10k": _MILK,
    "milk10k-5": _MILK,
    "pad-ufes-20": Source(
        lambda size: (Download(PAD, "zr7vgbcyr2-1.zip", unpack=True),), note=NO_CHECKSUM.format(size="3.6 GB")
    ),
    "derm7pt": Source(
        instructions=(
            "Derm7pt is given out for academic research after a form:\n"
            "  1. fill in the form on https://derm.cs.sfu.ca/Download.html; the password for release_v0.zip is mailed\n"
            "  2. unpack it into {folder}, so that {folder}/release_v0/meta/meta.csv is there\n"
            "  3. run: medkd data check {name} --root {folder}"
        )
    ),
    "tcga-gbmlgg": Source(
        instructions=(
            "The tables are built from two public sources:\n"
            "  1. from https://github.com/mahmoodlab/PORPOISE take "
            "datasets_csv_mutsig/tcga_gbmlgg_all_clean.csv.zip (mutations, copy number, expression, survival)\n"
            "  2. from https://www.cbioportal.org take grade and histology (study lgg_tcga; every GBM is grade 4) and "
            "the IDH/1p19q subtype (study lgggbm_tcga_pub)\n"
            "  3. write {folder}/patients.csv and {folder}/genomics.csv.gz with one row per patient, columns as "
            "data/README.md lists them\n"
            "  4. run: medkd data check {name} --root {folder}"
        )
    ),
    "tcga-gbmlgg-pathomic": Source(
        instructions=(
            "Pathomic Fusion gives its regions and tables out in a shared folder:\n"
            "  1. follow the link to the data in the README of https://github.com/mahmoodlab/PathomicFusion and take "
            "data/TCGA_GBMLGG\n"
            "  2. put all_dataset.csv, grade_data.csv, pnas_splits.csv and the folder all_st (or all_st.zip) into "
            "{folder}\n"
            "  3. run: medkd data check {name} --root {folder}"
        )
    ),
    "own": Source(
        instructions=(
            "Your own data need no download:\n"
            "  1. put a CSV with one row per sample, and the images, into a folder\n"
            "  2. run: medkd data prepare own --root FOLDER"
        )
    ),
}
