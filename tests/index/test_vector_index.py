"""The contract of every vector index, one parameter per kind."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from recsys.index import INDEX_KINDS, ExactIndex, VectorIndex, build_index, load_index
from recsys.index.exact import exact_scores

EXACT_KINDS = ("exact", "flat")
DIM = 12


def catalogue(num_items=3000, seed=0):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, DIM, generator=draw)
    vectors = centres[torch.arange(num_items) % 20] + 0.7 * torch.randn(num_items, DIM, generator=draw)
    queries = centres[:8] + 0.7 * torch.randn(8, DIM, generator=draw)
    return vectors, queries


@pytest.fixture(scope="module", params=INDEX_KINDS)
def kind(request):
    if request.param != "exact":
        pytest.importorskip("faiss")
    return request.param


@pytest.fixture(scope="module")
def built(kind):
    vectors, queries = catalogue()
    return build_index(kind, vectors), vectors, queries


def assert_lawful(hits, vectors, queries, k):
    """Shapes, order, ties, unfilled places and scores, whatever was found."""
    assert hits.ids_QK.shape == hits.scores_QK.shape == (len(queries), k)
    assert (hits.ids_QK.dtype, hits.scores_QK.dtype) == (torch.int64, torch.float32)
    for ids, scores, query in zip(hits.ids_QK, hits.scores_QK, queries, strict=True):
        real = int((ids >= 0).sum())
        assert (ids[real:] == -1).all() and (scores[real:] == -torch.inf).all()
        ids, scores = ids[:real], scores[:real]
        assert len(set(ids.tolist())) == real
        assert torch.equal(scores, (vectors[ids].double() * query.double()).sum(1).float())
        rises = (scores[:-1] > scores[1:]) | ((scores[:-1] == scores[1:]) & (ids[:-1] < ids[1:]))
        assert rises.all()


def recall(hits, reference):
    found = [
        len(set(a) & set(b)) / len(b) for a, b in zip(hits.ids_QK.tolist(), reference.ids_QK.tolist(), strict=True)
    ]
    return float(np.mean(found))


def test_finds_the_best_items(built, kind):
    index, vectors, queries = built
    assert isinstance(index, VectorIndex)
    assert (index.kind, index.num_items, index.dim) == (kind, 3000, DIM)
    hits, reference = index.search(queries, 20), ExactIndex(vectors).search(queries, 20)
    assert_lawful(hits, vectors, queries, 20)
    if kind in EXACT_KINDS:
        assert torch.equal(hits.ids_QK, reference.ids_QK)
        assert torch.equal(hits.scores_QK, reference.scores_QK)
    else:
        assert recall(hits, reference) >= 0.9


@pytest.mark.parametrize("kind", [kind for kind in INDEX_KINDS if kind != "exact"])
def test_faiss_answers_itself(kind, monkeypatch):
    pytest.importorskip("faiss")
    vectors, queries = catalogue()
    index = build_index(kind, vectors)
    monkeypatch.setattr(index.exact, "search", lambda *a, **kw: pytest.fail("the exact search was asked"))
    index.search(queries, 20, exclude_QE=torch.arange(24).view(8, 3), allow_N=torch.arange(0, 3000, 2))


def test_equal_scores_go_to_the_smaller_id(kind):
    vectors, queries = catalogue(1000)
    vectors = vectors.repeat(3, 1)  # ids i, i + 1000, i + 2000 tie
    index = build_index(kind, vectors)
    hits = index.search(queries, 30)
    assert_lawful(hits, vectors, queries, 30)
    if kind in EXACT_KINDS:
        assert torch.equal(hits.ids_QK[:, 0] + 1000, hits.ids_QK[:, 1])
        assert torch.equal(hits.ids_QK[:, 0] + 2000, hits.ids_QK[:, 2])
        cut = index.search(queries, 29)  # the last place falls inside a tie: the larger id is dropped
        assert torch.equal(cut.ids_QK, hits.ids_QK[:, :29])


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_rounding_of_the_matrix_product_decides_nothing(kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    vectors, queries = catalogue()
    vectors, queries = vectors * 0.1, queries * 0.1
    vectors[:, 5], queries[:, 5] = 1000.0, 1000.0  # one float32 step of the scores is wider than what tells items apart
    hits = build_index(kind, vectors).search(queries, 20)
    scores = (vectors.double() @ queries.double().T).T.float().numpy()
    for row in range(len(queries)):
        assert hits.ids_QK[row].tolist() == np.lexsort((np.arange(3000), -scores[row]))[:20].tolist()


@pytest.mark.parametrize("kind", ["ivf", "pq"])
def test_too_few_proposals_are_made_up_for(kind):
    """One cluster of 54 holds fewer items than asked for."""
    pytest.importorskip("faiss")
    vectors, queries = catalogue()
    hits = build_index(kind, vectors, nlist=54, nprobe=1, refine=1).search(queries, 300)
    reference = ExactIndex(vectors).search(queries, 300)
    assert torch.equal(hits.ids_QK, reference.ids_QK)


def test_k_beyond_what_is_left(built):
    index, vectors, queries = built
    hits = index.search(queries, 3005)
    assert_lawful(hits, vectors, queries, 3005)
    assert ((hits.ids_QK >= 0).sum(1) == 3000).all()
    allow = torch.tensor([3, 8, 2999])
    hits = index.search(queries, 5, allow_N=allow, exclude_QE=torch.tensor([[8, 8, -1]] * 8))
    assert_lawful(hits, vectors, queries, 5)
    assert hits.ids_QK.sort(1).values.tolist() == [[-1, -1, -1, 3, 2999]] * 8


def test_exclusions_belong_to_their_query(built, kind):
    index, vectors, queries = built
    free = index.search(queries, 20)
    exclude = torch.full((8, 300), -1)
    for row in range(1, 8):
        exclude[row, : 40 * row] = index.search(queries[row : row + 1], 40 * row).ids_QK[0]
    exclude[0, :2] = torch.tensor([10_000, -1])  # outside the catalogue: ignored
    hits = index.search(queries, 20, exclude_QE=exclude)
    assert_lawful(hits, vectors, queries, 20)
    assert torch.equal(hits.ids_QK[0], free.ids_QK[0])
    for row in range(1, 8):
        assert not set(hits.ids_QK[row].tolist()) & set(exclude[row].tolist())
    if kind in EXACT_KINDS:
        reference = ExactIndex(vectors).search(queries, 320)
        for row in range(1, 8):
            assert hits.ids_QK[row].tolist() == reference.ids_QK[row, 40 * row : 40 * row + 20].tolist()


@pytest.mark.parametrize("share", [1, 2, 100])
def test_only_allowed_items_are_returned(built, kind, share):
    index, vectors, queries = built
    allow = torch.arange(0, 3000, share)
    hits = index.search(queries, 20, allow_N=allow)
    assert_lawful(hits, vectors, queries, 20)
    assert torch.isin(hits.ids_QK, allow).all()
    assert recall(hits, ExactIndex(vectors).search(queries, 20, allow_N=allow)) >= (1 if kind in EXACT_KINDS else 0.9)


def test_nothing_to_find(built, kind):
    index, _, queries = built
    nothing = torch.empty(0, dtype=torch.int64)
    for hits in (
        index.search(queries, 4, allow_N=nothing),
        build_index(kind, torch.empty(0, DIM)).search(queries, 4),
        index.search(queries, 4, allow_N=torch.tensor([5]), exclude_QE=torch.full((8, 1), 5)),
    ):
        assert hits.ids_QK.tolist() == [[-1] * 4] * 8
        assert hits.scores_QK.tolist() == [[-float("inf")] * 4] * 8
    none = index.search(queries[:0], 4, exclude_QE=torch.empty(0, 3, dtype=torch.int64))
    assert none.ids_QK.shape == none.scores_QK.shape == (0, 4)


def test_a_query_does_not_depend_on_its_batch(built):
    index, _, queries = built
    together, alone = index.search(queries, 20), index.search(queries[3:4], 20)
    assert torch.equal(together.ids_QK[3:4], alone.ids_QK)
    assert torch.equal(together.scores_QK[3:4], alone.scores_QK)


def test_threads_share_an_index(built):
    index, _, queries = built
    allows = [None, torch.arange(0, 3000, 2), torch.arange(1, 3000, 2), torch.arange(500, 3000)] * 8
    expected = [index.search(queries, 20, allow_N=allow) for allow in allows]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda allow: index.search(queries, 20, allow_N=allow), allows))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.ids_QK, other.ids_QK)


@pytest.mark.parametrize("num_items", [0, 5, 3000])
def test_reloads_from_files(kind, num_items, tmp_path):
    vectors, queries = catalogue(num_items)
    index = build_index(kind, vectors)
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index")
    assert (again.kind, again.num_items, again.dim) == (kind, num_items, DIM)
    one, other = index.search(queries, 20), again.search(queries, 20)
    assert torch.equal(one.ids_QK, other.ids_QK)
    assert torch.equal(one.scores_QK, other.scores_QK)


def test_damaged_parts_are_refused_before_anyone_reads_them(kind, tmp_path, monkeypatch):
    good = tmp_path / "good"
    build_index(kind, catalogue(500)[0]).save(good)
    if kind != "exact":
        monkeypatch.setattr("faiss.read_index", lambda *a: pytest.fail("FAISS saw bytes that nobody had checked"))
    monkeypatch.setattr("recsys.index.exact.load_file", lambda *a, **kw: pytest.fail("vectors were read unchecked"))
    parts = sorted(file.name for file in good.iterdir())
    assert len(parts) == (2 if kind == "exact" else 3)
    for part in parts:
        size = (good / part).stat().st_size
        for number, damage in enumerate(("missing", "truncated", "flipped", "foreign")):
            bad = tmp_path / f"{part}-{number}"
            shutil.copytree(good, bad)
            data = bytearray((bad / part).read_bytes())
            if damage == "missing":
                (bad / part).unlink()
            elif damage == "truncated":
                (bad / part).write_bytes(data[: size // 2])
            elif damage == "flipped":
                data[size // 2] ^= 4
                (bad / part).write_bytes(data)
            else:
                (bad / part).write_bytes(b"\x00" * size)
            with pytest.raises(ValueError, match=part.replace(".", r"\.")) as caught:
                load_index(bad)
            assert "\n" not in str(caught.value)
            assert "again" in str(caught.value)


def test_manifest_that_disagrees_with_its_parts(kind, tmp_path):
    """Right hashes do not make parts fit together: sizes are compared too."""
    build_index(kind, catalogue(500)[0]).save(tmp_path / "a")
    header = json.loads((tmp_path / "a" / "index.json").read_text())
    from recsys.index.parts import write_parts

    parts = {name: lambda path, name=name: shutil.copy(tmp_path / "a" / name, path) for name in header["parts"]}
    del header["checksum"], header["parts"]
    write_parts(tmp_path / "b", "index.json", header | {"num_items": 499}, parts)
    with pytest.raises(ValueError, match="500.*says 499"):
        load_index(tmp_path / "b")
    write_parts(tmp_path / "c", "index.json", header | {"format_version": 99}, parts)
    with pytest.raises(ValueError, match="format version 99"):
        load_index(tmp_path / "c")


def test_bad_requests_are_named(built):
    index, _, queries = built
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.search(queries, 0)
    with pytest.raises(ValueError, match=r"queries must be \[Q, 12\]"):
        index.search(queries[:, :5], 3)
    with pytest.raises(ValueError, match="allow_N must rise strictly"):
        index.search(queries, 3, allow_N=torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="ids from 0 to 2999, got 4 to 3000"):
        index.search(queries, 3, allow_N=torch.tensor([4, 3000]))
    with pytest.raises(ValueError, match=r"exclude_QE must be int64 \[8, E\]"):
        index.search(queries, 3, exclude_QE=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="query 2 holds a NaN"):
        index.search(torch.where(torch.arange(8).unsqueeze(1) == 2, torch.nan, queries), 3)
    with pytest.raises(ValueError, match="vector 1 holds a NaN"):
        build_index(index.kind, torch.tensor([[1.0], [torch.nan]]))


def test_unknown_kind_and_missing_faiss():
    with pytest.raises(ValueError, match="no index kind 'annoy'; choose one of exact, flat"):
        build_index("annoy", torch.zeros(3, 2))
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import torch; from recsys.index import build_index\n"
        "print(build_index('exact', torch.ones(3, 2)).search(torch.ones(1, 2), 1).ids_QK.tolist())\n"
        "try:\n    build_index('ivf', torch.ones(3, 2))\n"
        "except ValueError as error:\n    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("[[0]]\n")
    assert "pip install 'recsys[faiss]'" in out


@pytest.mark.gpu
def test_search_on_a_gpu_equals_the_cpu(kind):
    vectors, queries = catalogue()
    reference = ExactIndex(vectors).search(queries, 20)
    hits = build_index(kind, vectors.cuda()).search(queries.cuda(), 20)
    assert hits.ids_QK.is_cuda
    assert recall(hits, reference) >= (1 if kind in EXACT_KINDS else 0.9)


@pytest.mark.parametrize("lists", ["none", "exclusions", "allowed", "both"])
@pytest.mark.parametrize("k", [5, 590])
def test_exact_search_makes_nothing_on_a_device_of_its_own(lists, k, elsewhere):
    vectors, queries = catalogue()
    gone = torch.arange(len(vectors)) % 9 == 0
    exclude = torch.arange(len(queries))[:, None] if lists in ("exclusions", "both") else None
    allow = torch.arange(0, len(vectors), 2) if lists in ("allowed", "both") else None
    plain = ExactIndex(vectors).without(gone).search(queries, k, exclude_QE=exclude, allow_N=allow)
    index = ExactIndex(vectors.to(elsewhere)).without(gone.to(elsewhere))
    for home in (elsewhere, queries.device):
        limits = {"exclude_QE": exclude, "allow_N": allow}
        there = {name: None if ids is None else ids.to(home) for name, ids in limits.items()}
        hits = index.search(queries.to(home), k, **there)
        assert hits.ids_QK.device == hits.scores_QK.device == home
        assert torch.equal(hits.ids_QK.cpu(), plain.ids_QK) and torch.equal(hits.scores_QK.cpu(), plain.scores_QK)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "pq"])
def test_items_beside_an_index_are_allowed_as_all_others_are(kind):
    """The items that came are the best for every query; half of them are allowed."""
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.rand(1000, 8, generator=generator), torch.rand(5, 8, generator=generator)
    grown = torch.cat([vectors, 9 + torch.rand(6, 8, generator=generator)])
    index = build_index(kind, vectors).moved(grown, torch.arange(1000, 1006))
    allow_N = torch.cat([torch.arange(900), torch.tensor([1000, 1002, 1004])])
    hits = index.search(queries, 5, allow_N=allow_N)
    assert torch.isin(hits.ids_QK, allow_N).all()
    assert torch.equal(hits.ids_QK[:, :3].sort(1).values, allow_N[-3:].expand(5, -1))
    assert torch.equal(index.search(queries, 6).ids_QK.sort(1).values, torch.arange(1000, 1006).expand(5, -1))


def test_items_that_came_moved_or_went(kind):
    """An index under way finds new items, forgets old vectors and gone items, and fills every place."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(640, 8, generator=generator)
    index = build_index(kind, vectors[:600])
    after = vectors.clone()
    changed = torch.tensor([3, 50, 599])
    after[changed] = torch.randn(3, 8, generator=generator) * 2
    moved = torch.cat([changed, torch.arange(600, 640)])
    query = torch.cat([after[changed], after[630:633], torch.randn(4, 8, generator=generator)]) * 3
    best = ExactIndex(after).search(query, 3).ids_QK
    gone = torch.zeros(640, dtype=torch.bool)
    gone[best[:, 0]] = True
    live = index.moved(after[:610], moved[:13]).moved(after, moved).without(gone)
    excluded = gone.nonzero().flatten().expand(len(query), -1).contiguous()
    allow = torch.arange(0, 640, 2)
    for allow_N in (None, allow):
        for k in (1, 5, 40):
            hits = live.search(query, k, allow_N=allow_N)
            plain = ExactIndex(after).search(query, k, exclude_QE=excluded, allow_N=allow_N)
            assert bool((hits.ids_QK >= 0).all()) and not bool(gone[hits.ids_QK].any())
            if kind in ("exact", "flat"):
                assert torch.equal(hits.ids_QK, plain.ids_QK) and torch.equal(hits.scores_QK, plain.scores_QK)
            else:  # what is new or moved is found exactly, whatever the structure misses of the rest
                beside = torch.isin(plain.ids_QK, moved)
                found = [torch.isin(p, h) for p, h in zip(plain.ids_QK, hits.ids_QK, strict=True)]
                assert bool((beside <= torch.stack(found)).all())
            assert torch.equal(hits.scores_QK, exact_scores(after, query, hits.ids_QK))
    most = live.search(query, 640)
    assert int((most.ids_QK >= 0).sum(1).unique()) == 640 - int(gone.sum())
    fresh = build_index(kind, vectors[:600])
    assert index.gone_I is None and torch.equal(index.search(query, 3).ids_QK, fresh.search(query, 3).ids_QK)
    assert live.without(None).search(query, 3).ids_QK.tolist()[:3] == best.tolist()[:3]


def test_a_moved_index_is_saved_whole(kind, tmp_path):
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(4))
    build_index(kind, vectors[:290]).moved(vectors, torch.arange(290, 300)).save(tmp_path)
    loaded = load_index(tmp_path)
    assert (loaded.num_items, loaded.kind, loaded.gone_I) == (300, kind, None)
    assert loaded.search(vectors[295:296], 1).scores_QK.shape == (1, 1)
