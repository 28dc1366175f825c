"""What every source of documents promises, and what folders hold that is no document."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.sources import DEFAULT_INCLUDE, Source, open_sources
from dataflows.sources.files import path_of, uri_of
from dataflows.sources.globs import Globs
from dataflows.sources.memory import MemorySource
from operators.errors import ConfigError, RetryableError, SkippableError, UnavailableError

LIMIT = 1 << 20


class Shelf:
    """A source and how its owner puts, drops and names documents."""

    def __init__(self, kind: str, root: Path) -> None:
        self.put: Callable[[str, bytes], str]
        self.drop: Callable[[str], None]
        if kind == "memory":
            memory = MemorySource("m")
            self.put, self.drop, self.source = memory.put, memory.drop, memory
        else:
            self.put, self.drop = self._write, lambda path: (root / path).unlink()
            self._root = root
            (self.source,) = open_sources([str(root)])

    source: Source

    def _write(self, path: str, content: bytes) -> str:
        place = self._root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place.as_uri()


@pytest.fixture(params=["memory", "files"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """An empty source of each kind."""
    return Shelf(request.param, tmp_path)


def reason(source: Source, uri: str, limit_bytes: int = LIMIT) -> str:
    """Why the document cannot be read."""
    with pytest.raises(SkippableError) as caught:
        source.read(uri, limit_bytes)
    return caught.value.reason


def test_what_is_put_is_listed_and_read(shelf: Shelf) -> None:
    """Every document once, with its size, whatever its name; empty ones too; reading gives its bytes."""
    paths = ["a.md", "deep/er/b.txt", "sp ace & 50%.md", "日本/é.md", "#?*[x].txt", "empty.md", "new\nline.md"]
    contents = {shelf.put(path, bytes(range(256)) * n): bytes(range(256)) * n for n, path in enumerate(paths)}
    listed = list(shelf.source.list())
    assert sorted(f.uri for f in listed) == sorted(contents)
    assert {f.uri: f.size_bytes for f in listed} == {uri: len(content) for uri, content in contents.items()}
    assert {uri: shelf.source.read(uri, LIMIT) for uri in contents} == contents


def test_an_empty_source_lists_nothing(shelf: Shelf) -> None:
    """The end is reached at once."""
    assert list(shelf.source.list()) == []


def test_a_fingerprint_changes_with_the_content(shelf: Shelf) -> None:
    """Also where the size stays the same; without a change two listings are equal."""
    shelf.put("a.md", b"one")
    first, again = list(shelf.source.list()), list(shelf.source.list())
    shelf.put("a.md", b"two")
    assert first == again
    assert next(shelf.source.list()).fingerprint != first[0].fingerprint


def test_a_limit_is_inclusive(shelf: Shelf) -> None:
    """As many bytes as the limit are read, one more is too large."""
    uri = shelf.put("a.md", b"12345")
    assert shelf.source.read(uri, 5) == b"12345"
    assert reason(shelf.source, uri, 4) == "too_large"


def test_what_is_gone_says_so(shelf: Shelf) -> None:
    """A document that vanished after it was listed is told from one that never was of this source."""
    uri = shelf.put("a.md", b"one")
    shelf.drop("a.md")
    assert (list(shelf.source.list()), reason(shelf.source, uri)) == ([], "vanished")
    for strange in ("", "file:///etc/passwd", "memory:other/a.md", "https://example.org/a.md", f"{uri}%00", "file:"):
        assert reason(shelf.source, strange) in ("outside", "vanished")
    assert reason(shelf.source, "file:///etc/passwd") == "outside"


def test_one_document_is_looked_at_as_it_is_listed(shelf: Shelf) -> None:
    """The same as the listing says; None once it is gone; a uri that is none of the source's is outside."""
    uri = shelf.put("sub/a.md", b"one")
    assert shelf.source.look(uri) == next(shelf.source.list())
    assert shelf.source.media_type(uri) is None
    shelf.drop("sub/a.md")
    assert shelf.source.look(uri) is None
    for strange in ("", "file:///etc/passwd", "memory:other/a.md", "https://example.org/a.md", "file:"):
        with pytest.raises(SkippableError) as caught:
            shelf.source.look(strange)
        assert caught.value.reason == "outside"


ENTRIES = ["", "sub", "*", "sub/*", "**/deep", "a.md", "sub/[c-e].md"]
"""Entries below a root: all of it, a folder, globs, a file."""


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_looked_at_is_what_is_listed(tmp_path: Path, entry: str) -> None:
    """Hidden, excluded and other files, links in and out, folders: a look takes exactly what a listing does."""
    root, beside = tmp_path / "root", tmp_path / "beside"
    names = ["a.md", "b.png", ".c.md", "sub/d.md", "sub/deep/e.md", "sub/.hidden/f.md", "drafts/g.md", "sub/deep/h.TXT"]
    tree(root, *names)
    tree(beside, "secret.md")
    (root / "link.md").symlink_to(root / "a.md")
    (root / "out.md").symlink_to(beside / "secret.md")
    (root / "linked").symlink_to(root / "sub")
    (root / "loop.md").symlink_to(root / "loop.md")
    (root / "folder.md").mkdir()
    (source,) = open_sources([f"{root}/{entry}".rstrip("/")], exclude=["drafts", "h.*"])
    looked, reasons = {}, set()
    paths = [*root.rglob("*"), *(root / "linked").glob("*"), *beside.iterdir(), root, root / "sub/../a.md"]
    for path in paths:
        try:
            looked[f"file://{path}"] = source.look(f"file://{path}")
        except SkippableError as error:
            reasons.add(error.reason)
    assert reasons <= {"outside", "unreadable"}
    assert {uri: found for uri, found in looked.items() if found} == {found.uri: found for found in source.list()}


def test_a_look_at_a_root_that_went_away(tmp_path: Path) -> None:
    """Nothing can be said of its documents: they are not gone."""
    tree(tmp_path, "root/a.md")
    (source,) = open_sources([str(tmp_path / "root")])
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError):
        source.look((tmp_path / "root/a.md").as_uri())


def listed(root: Path, *entries: str, **globs: list[str]) -> list[str]:
    """Paths below the root that the entries list, sorted."""
    sources = open_sources(entries or [str(root)], **globs)
    paths = [path_of(found.uri) or "" for source in sources for found in source.list()]
    return sorted(path.removeprefix(f"{root}/") for path in paths)


def tree(root: Path, *paths: str) -> None:
    """Make files, each holding its own path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_include_and_exclude(tmp_path: Path) -> None:
    """Both fit paths below the root; what is excluded wins, and an excluded folder is not even opened."""
    tree(tmp_path, "a.md", "b.TXT", "c.png", "sub/d.pdf", "sub/deep/e.md", "drafts/f.md", "sub/drafts/g.md")
    assert listed(tmp_path) == ["a.md", "b.TXT", "drafts/f.md", "sub/d.pdf", "sub/deep/e.md", "sub/drafts/g.md"]
    assert listed(tmp_path, include=["*.png"]) == ["c.png"]
    assert listed(tmp_path, include=["sub/*"]) == ["sub/d.pdf"]
    assert listed(tmp_path, include=["sub/**"], exclude=["**/deep"]) == ["sub/d.pdf", "sub/drafts/g.md"]
    assert listed(tmp_path, exclude=["drafts", "*.pdf", " "]) == ["a.md", "b.TXT", "sub/deep/e.md"]
    assert listed(tmp_path, exclude=["drafts/**", "sub/"]) == ["a.md", "b.TXT"]
    with pytest.raises(ConfigError, match="SOURCE_INCLUDE"):
        open_sources([str(tmp_path)], include=["[z-a].md"])


def test_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a file (whatever its ending), a glob, a URL, relative or not; the same twice is one source."""
    tree(
        tmp_path, "one/a.md", "one/x/guide/b.md", "two/y/guide/c.md", "two/guide/d.md", "odd [1].rst", "e.md", "f,g.md"
    )
    assert listed(tmp_path, str(tmp_path / "odd [1].rst")) == ["odd [1].rst"]
    assert listed(tmp_path, f"{tmp_path}/*/*/guide") == ["one/x/guide/b.md", "two/y/guide/c.md"]
    assert listed(tmp_path, f"{tmp_path}/**/guide/*.md") == ["one/x/guide/b.md", "two/guide/d.md", "two/y/guide/c.md"]
    assert listed(tmp_path, f"{tmp_path}/[ef]*.md") == ["e.md", "f,g.md"]
    assert listed(tmp_path, f"{tmp_path}/nothing*") == []
    assert listed(tmp_path, f"file://{tmp_path}/f%2Cg.md") == ["f,g.md"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [source.name for source in open_sources(["one", " one/ ", "./two/../one", "~/one", "", "o*"])]
    assert names == [f"file://{tmp_path}/one", f"file://{tmp_path}/o*"]


def test_entries_that_name_nothing(tmp_path: Path) -> None:
    """Each is one sentence that names the setting and the entry."""
    for entries in (
        ["missing"],
        [f"{tmp_path}/missing/*.md"],
        ["s3://bucket/x"],
        ["file://host/x"],
        ["/dev/null"],
        [""],
        [],
    ):
        with pytest.raises(ConfigError, match="INGEST_SOURCES"):
            open_sources(entries)


def test_what_is_hidden_is_no_document(tmp_path: Path) -> None:
    """Names with a leading dot are left out, unless the entry itself is one."""
    tree(tmp_path, ".git/a.md", ".b.md", "c/.d/e.md", "f.md")
    assert listed(tmp_path) == ["f.md"]
    assert listed(tmp_path, str(tmp_path / ".git")) == [".git/a.md"]


def test_links(tmp_path: Path) -> None:
    """Circles end; a link to a file counts as a file where it stays inside, and is left out where it leads out."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    tree(root, "a/b/c.md", ".data/real.md")
    tree(outside, "secret.md")
    (root / "a/b/up").symlink_to(root)
    (root / "other").symlink_to(outside)
    (root / "self.md").symlink_to("self.md")
    (root / "broken.md").symlink_to("nowhere.md")
    (root / "stolen.md").symlink_to(outside / "secret.md")
    (root / "mount.md").symlink_to(".data/real.md")
    assert listed(root) == ["a/b/c.md", "mount.md"]
    (source,) = open_sources([str(root)])
    assert source.read(uri_of(f"{root}/mount.md"), LIMIT) == b".data/real.md"
    assert reason(source, uri_of(f"{root}/stolen.md")) == "outside"
    assert reason(source, f"file://{root}/../outside/secret.md") == "outside"
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert next(open_sources([str(linked)])[0].list()).uri.startswith(linked.as_uri())


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe is neither listed nor waited for, and a folder called like a document is a folder."""
    os.mkfifo(tmp_path / "pipe.md")
    tree(tmp_path, "folder.md/a.md")
    assert listed(tmp_path) == ["folder.md/a.md"]
    (source,) = open_sources([str(tmp_path)])
    assert reason(source, uri_of(f"{tmp_path}/pipe.md")) == "not_a_file"
    assert reason(source, uri_of(f"{tmp_path}/folder.md")) == "not_a_file"


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Their bytes come back; the uri is plain ASCII."""
    name = os.fsencode(tmp_path) + b"/caf\xe9 \xff.md"
    try:
        Path(os.fsdecode(name)).write_bytes(b"text")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (source,) = open_sources([str(tmp_path)])
    (found,) = source.list()
    assert found.uri.endswith("/caf%E9%20%FF.md")
    assert source.read(found.uri, LIMIT) == b"text"


@given(st.binary(min_size=1, max_size=40).map(lambda raw: b"/" + raw.replace(b"\0", b"").replace(b"/", b"-") + b"x"))
def test_uris_can_be_reversed(raw: bytes) -> None:
    """Any path of any bytes comes back, and its uri is the one that pathlib makes."""
    path = os.fsdecode(raw)
    assert path_of(uri_of(path)) == path
    assert uri_of(path) == Path(path).as_uri()
    assert uri_of(path).isascii()


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half of it is taken and no more than was there is read: it may be tried again, until it is too large."""
    place = tmp_path / "log.txt"
    place.write_bytes(b"x" * 100)
    (source,) = open_sources([str(tmp_path)])
    read = os.read

    def growing(file: int, count: int) -> bytes:
        piece = read(file, count)
        if piece:
            with place.open("ab") as more:
                more.write(b"y" * 30)
        return piece

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(RetryableError, match="changes while it is read"):
        source.read(place.as_uri(), 140)
    monkeypatch.undo()
    assert source.read(place.as_uri(), 1_000) == place.read_bytes()
    assert reason(source, place.as_uri(), 140) == "too_large"


def test_replaced_by_an_older_file_of_the_same_size(tmp_path: Path) -> None:
    """A file moved into the place of another with its time and size is another file: the inode tells."""
    tree(tmp_path, "a.md")
    other = tmp_path / "other.bin"
    other.write_text("A.MD")
    os.utime(other, ns=(0, 0))
    os.utime(tmp_path / "a.md", ns=(0, 0))
    (source,) = open_sources([str(tmp_path)])
    (before,) = source.list()
    other.rename(tmp_path / "a.md")
    (after,) = source.list()
    assert before.fingerprint != after.fingerprint


def test_a_root_that_goes_away_fails_the_listing(tmp_path: Path) -> None:
    """A folder that is not there, mounted or not, is no empty folder; a single file that is gone is gone."""
    tree(tmp_path, "mount/a.md", "single/b.md")
    folder, single = open_sources([str(tmp_path / "mount"), str(tmp_path / "single" / "b.md")])
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match="mount"):
        list(folder.list())
    (tmp_path / "single" / "b.md").unlink()
    assert list(single.list()) == []
    (tmp_path / "single").rmdir()
    with pytest.raises(UnavailableError, match=r"b\.md"):
        list(single.list())


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    """It fails the listing with what to do, instead of making its documents look deleted; excluded it does not."""
    tree(tmp_path, "a.md")
    made = folder = os.open(tmp_path, os.O_RDONLY)
    opened = [made]
    for _ in range(20):  # deeper than a path may be long, which stops even root
        os.mkdir("d" * 250, dir_fd=folder)
        folder = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        opened.append(folder)
    for file in opened:
        os.close(file)
    with pytest.raises(ConfigError, match="SOURCE_EXCLUDE"):
        listed(tmp_path)
    assert listed(tmp_path, exclude=["d*"]) == ["a.md"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    """A file that may not be read is one document's trouble, a folder that may not be read is the listing's."""
    tree(tmp_path, "a.md", "sub/b.md")
    (source,) = open_sources([str(tmp_path)])
    (tmp_path / "a.md").chmod(0)
    assert reason(source, uri_of(f"{tmp_path}/a.md")) == "unreadable"
    (tmp_path / "sub").chmod(0)
    with pytest.raises(ConfigError, match="SOURCE_EXCLUDE"):
        list(source.list())
    (tmp_path / "sub").chmod(0o700)


def fits(parts: list[str], names: list[str]) -> bool:
    """The slow and obvious meaning of a glob: name by name."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(fits(parts[1:], names[skip:]) for skip in range(len(names) + (parts != ["**"]))) or parts == ["**"]
    return bool(names) and fnmatchcase(names[0].lower(), parts[0].lower()) and fits(parts[1:], names[1:])


@given(
    parts=st.lists(
        st.sampled_from(["**", "*", "a", "B", "?", "a*", "[ab]", "[!a]", "*.md", "[", "a]", "(+)"]),
        min_size=2,
        max_size=4,
    ),
    names=st.lists(st.sampled_from(["a", "b", "ab", "x.md", "[", "a]", "(+)", "-"]), min_size=1, max_size=5),
)
def test_globs_mean_what_they_say(parts: list[str], names: list[str]) -> None:
    """A glob fits a path if its parts fit the names one by one, `**` any number of folders."""
    assert Globs(["/".join(parts)], "X").fit("/".join(names)) == fits(parts, names)


def test_the_default_takes_what_can_be_extracted() -> None:
    """At any depth, in any case, and nothing that only looks like it."""
    globs = Globs(DEFAULT_INCLUDE, "SOURCE_INCLUDE")
    assert all(globs.fit(path) for path in ("a.md", "x/y/b.txt", "x/C.PDF", "new\nline.md", "é.md"))
    assert not any(globs.fit(path) for path in ("a.md/b", "amd", "a.md~", "", "x/a.mdx"))
