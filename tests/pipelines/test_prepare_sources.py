"""Published data sets, each from a few lines in its published layout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.cli import main
from recsys.pipelines.prepare.sources import SOURCES, read_source


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(encoding)))
    else:
        path.write_text(text, encoding=encoding)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepared(name: str, folder: Path) -> Dataset:
    assert main(["prepare", "--from", name, str(folder), "--output", str(folder.parent / "data")]) == 0
    return Dataset.open(folder.parent / "data")


def histories(data: Dataset) -> dict[Any, list[Any]]:
    return {
        data.user_ids[user]: data.item_ids.gather(data.events.history(user).item).to_list()
        for user in range(data.num_users)
    }


def test_amazon_2014(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    rows = [("A1", "B2", 1_300_000_009), ("A1", "B1", 1_300_000_000), ("A2", "B9", 1_300_000_005)]
    reviews = [
        {"reviewerID": user, "asin": item, "overall": 4.0, "unixReviewTime": time, "helpful": [0, 1], "summary": "it's"}
        for user, item, time in rows
    ]
    write(raw / "reviews_Toys_and_Games_5.json.gz", lines(*reviews))
    # Metadata of 2014 are Python literals, not JSON.
    meta = [
        {"asin": "B1", "title": "It's a train", "categories": [["Toys", "Trains"]], "price": 9.5, "brand": ""},
        {"asin": "B2", "description": "A ship", "categories": [["Toys"], ["Boats"]]},
    ]
    write(raw / "meta_Toys_and_Games.json.gz", "".join(f"{entry!r}\n" for entry in meta))
    data = prepared("amazon-2014", raw)
    assert histories(data) == {"A1": ["B1", "B2"], "A2": ["B9"]}
    assert data.events.value.tolist() == [4, 4, 4] and data.manifest.clock == "real"
    assert data.items["text"].to_list() == ["Toys > Trains", "Toys; Boats. A ship", None]
    assert data.items["price"].to_list() == [9.5, None, None]
    write(raw / "meta_Toys_and_Games.json.gz", "{'asin': 'B1'}\n{'asin': __import__('os')}\n")
    with pytest.raises(InputError, match=r"meta_Toys_and_Games.json.gz, row 2: not the metadata of an item"):
        read_source("amazon-2014", raw)


def test_amazon_2023(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    rows = [("A1", "B2", 1_600_000_000_900), ("A1", "B1", 1_600_000_000_100)]
    reviews = [
        {
            "user_id": user,
            "parent_asin": item,
            "asin": "X",
            "rating": 5.0,
            "timestamp": time,
            "title": "t",
            "images": [],
        }
        for user, item, time in rows
    ]
    write(raw / "All_Beauty.jsonl", lines(*reviews))
    meta = {
        "parent_asin": "B1", "title": "Soap", "main_category": "All Beauty", "store": None, "price": "None",
        "features": ["mild", "green"], "description": [], "categories": ["Beauty", "Soap"], "details": {"a": "b"},
    }  # fmt: skip
    write(raw / "meta_All_Beauty.jsonl", lines(meta))
    data = prepared("amazon-2023", raw)
    assert histories(data) == {"A1": ["B1", "B2"]}  # ordered by milliseconds, kept in seconds
    assert data.events.timestamp.tolist() == [1_600_000_000] * 2
    assert data.items["text"].to_list() == ["Beauty > Soap. mild green", None]
    write(raw / "Toys.jsonl", lines(*reviews))
    with pytest.raises(InputError, match="holds 2 review files"):
        read_source("amazon-2023", raw)


def test_movielens_csv(tmp_path: Path) -> None:
    raw = tmp_path / "ml-latest-small"
    write(raw / "ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,964982703\n1,1,4.0,964981247\n")
    write(
        raw / "movies.csv", 'movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n2,"Up, up",(no genres listed)\n'
    )
    data = prepared("movielens", raw)
    assert histories(data) == {1: [1, 2]}
    assert data.manifest.actions == ("rating_3.5", "rating_4")
    assert data.events.value.tolist() == [4.0, 3.5]
    assert data.items["genres"].to_list() == [["Animation", "Comedy"], None]
    assert data.items["text"].to_list() == ["Toy Story (1995). Animation, Comedy", "Up, up"]


def test_movielens_dat(tmp_path: Path) -> None:
    raw = tmp_path / "ml-1m"
    write(raw / "ratings.dat", "1::1193::5::978300760\n2::661::3::978302109\n")
    write(raw / "movies.dat", "661::Misérables, Les (1995)::Drama|Musical\n1193::Other::Drama\n", "latin-1")
    write(raw / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    data = prepared("movielens", raw)
    assert histories(data) == {1: [1193], 2: [661]}
    assert data.items["title"].to_list() == ["Misérables, Les (1995)", "Other"]
    assert data.users.to_dicts()[1] == {"user_id": 2, "gender": "M", "age": "56", "occupation": "16", "zip": "70072"}
    write(raw / "ratings.dat", "1::1193::5::978300760\n2::661::3\n")
    with pytest.raises(InputError, match="ratings.dat, row 2: not 4 values between ::"):
        read_source("movielens", raw)


def test_movielens_100k(tmp_path: Path) -> None:
    raw = tmp_path / "ml-100k"
    write(raw / "u.data", "196\t242\t3\t881250949\n196\t302\t3\t881250940\n")
    flags = ["0"] * 19
    flags[5] = flags[14] = "1"
    write(raw / "u.item", f"242|Kolya (1996)|24-Jan-1997||http://x|{'|'.join(flags)}\n", "latin-1")
    data = prepared("movielens", raw)
    assert histories(data) == {196: [302, 242]}
    assert data.items["text"].to_list() == ["Kolya (1996). Comedy, Romance", None]


def test_kuairand(tmp_path: Path) -> None:
    raw = tmp_path / "KuaiRand-Pure"
    head = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
    )
    write(
        raw / "data" / "log_standard_4_08_to_4_21_pure.csv",
        head + "0,7,20220408,100,1649400000500,1,0,0,0,0,0,1,2500,9000,0,0,0,0,1\n",
    )
    write(
        raw / "data" / "log_standard_4_22_to_5_08_pure.csv",
        head + "0,8,20220422,100,1650600000000,0,0,0,0,0,0,0,0,9000,0,0,0,0,0\n"
        "0,9,20220423,100,1650700000000,0,0,0,0,0,1,0,0,9000,0,0,1,0,1\n",
    )
    write(raw / "data" / "video_features_basic_pure.csv", 'video_id,author_id,tag\n7,5,"3,12"\n8,6,\n')
    write(raw / "data" / "user_features_pure.csv", "user_id,register_days\n0,17\n")
    data = prepared("kuairand", raw)
    assert histories(data) == {0: [7, 8, 9]}
    assert data.manifest.actions == ("click", "hate", "long_view", "profile_enter")
    assert data.manifest.negatives == ("hate",)
    assert data.events.yes.tolist() == [0b101, 0, 0b1010]
    assert data.events.value.tolist() == [2.5, 0.0, 0.0]
    assert [data.manifest.surfaces[at] for at in data.events.surface] == ["tab_1", "tab_0", "tab_1"]
    assert data.items["text"].to_list() == ["tag_3 tag_12 author_5", "author_6", None]
    assert data.users["register_days"].to_list() == [17]


def test_goodbooks(tmp_path: Path) -> None:
    raw = tmp_path / "goodbooks-10k"
    write(raw / "ratings.csv", "user_id,book_id,rating\n1,258,5\n2,4081,4\n1,260,5\n")
    write(
        raw / "books.csv",
        'book_id,goodreads_book_id,title,authors\n258,1001,The Shadow,"Carlos, Lucia"\n260,1002,How to Win,Dale\n',
    )
    data = prepared("goodbooks", raw)
    assert histories(data) == {1: [258, 260], 2: [4081]}
    assert data.manifest.clock == "order" and data.manifest.actions == ("rating_4", "rating_5")
    assert data.items["text"].to_list()[0] == "The Shadow. By Carlos, Lucia"
    write(raw / "book_tags.csv", "goodreads_book_id,tag_id,count\n1001,2,5\n1001,1,50\n")
    write(raw / "tags.csv", "tag_id,tag_name\n1,fiction\n2,to-read\n")
    data = prepared("goodbooks", raw)
    assert data.items["text"].to_list()[0] == "The Shadow. By Carlos, Lucia. Shelves: fiction, to-read"
    write(raw / "books.csv", "id,title\n1,x\n")
    with pytest.raises(InputError, match="books.csv: column book_id is missing"):
        read_source("goodbooks", raw)


@pytest.mark.parametrize("name", SOURCES)
def test_folder_without_the_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--from {name} .*: no such folder"):
        read_source(name, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds (no|0)"):
        read_source(name, tmp_path)


def test_flags_of_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="--from netflix is not known; choose amazon-2014"):
        read_source("netflix", tmp_path)
    output = str(tmp_path / "data")
    assert main(["prepare", "--from", "movielens", "--output", output]) == 2
    assert "--from" in capsys.readouterr().err
    assert main(["prepare", "--from", "movielens", str(tmp_path), "--items", "x.csv", "--output", output]) == 2
    assert "--from stands in the place of" in capsys.readouterr().err
