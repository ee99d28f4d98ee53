"""Downloads Kaggle's garbage photos with kagglehub."""

from pathlib import Path

from .. import InputError

DATASET = "mostafaabla/garbage-classification"


def download() -> Path:
    """The folder of class folders, downloaded unless it is in kagglehub's cache.

    Raises:
        InputError: kagglehub is not installed, there is no network, or Kaggle asks for an account.
    """
    try:
        import kagglehub
    except ImportError:
        raise InputError("--download needs kagglehub: pip install kagglehub") from None
    by_hand = (
        f"or download https://www.kaggle.com/datasets/{DATASET} in a browser, unpack it, "
        "and give the folder that has the class folders to --data"
    )
    try:
        folder = Path(kagglehub.dataset_download(DATASET))
    except Exception as error:  # requests, urllib3 and kagglehub have no common base exception
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise InputError(
                f"Kaggle asks for an account ({error}). Make a token at https://www.kaggle.com/settings, put it "
                f"into KAGGLE_API_TOKEN or ~/.kaggle/kaggle.json, and try again, {by_hand}"
            ) from error
        raise InputError(
            f"{DATASET} cannot be downloaded ({type(error).__name__}: {error}). Try again, {by_hand}"
        ) from error
    return class_folder(folder)


def class_folder(folder: Path) -> Path:
    """The folder with the class folders: an archive often has one folder around them."""
    while True:
        inner = [path for path in folder.iterdir() if path.is_dir()]
        if len(inner) != 1 or any(path.is_file() for path in folder.iterdir()):
            return folder
        folder = inner[0]
