"""Files come whole from a server that fails in every way, and what was fetched is not fetched again."""

import gzip
import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import STRUCTURES

from coordformer import read_chains
from coordformer.data.fetch import fetch, parse_ids
from coordformer.data.rows import load_rows
from coordformer_command import main

ENTRY = (STRUCTURES / "1A8O.cif.gz").read_bytes()
MODEL = gzip.decompress(ENTRY)  # AlphaFold DB serves its files plain


# --- a server that follows a script: for each path answers in turn, the last one again and again ----------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, self.headers["User-Agent"]))
        script = self.server.script.get(self.path) or [status(404)]
        answer = script.pop(0) if len(script) > 1 else script[0]
        answer(self)

    def begin(self, code, length, **headers):
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_):
        pass


def body(content, **headers):
    def answer(handler):
        handler.begin(200, len(content), **headers)
        handler.wfile.write(content)

    return answer


def chunked(content):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (content[:1000], content[1000:], b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    return answer


def status(code, **headers):
    return lambda handler: handler.begin(code, 0, **headers)


def truncated(content):
    def answer(handler):
        handler.begin(200, len(content))
        handler.wfile.write(content[: len(content) // 2])
        handler.close_connection = True

    return answer


def no_answer(handler):
    handler.close_connection = True


def stall(handler):
    handler.begin(200, 100_000)
    handler.wfile.write(ENTRY[:100])
    handler.wfile.flush()
    handler.server.over.wait(20)
    handler.close_connection = True


def trickle(handler):
    handler.begin(200, 100_000)
    for _ in range(400):
        handler.wfile.write(b"\x1f")
        if handler.server.over.wait(0.05):
            break
    handler.close_connection = True


def endless_error(handler):
    handler.send_response(503)
    handler.end_headers()  # no length: the body ends with the connection
    try:
        while not handler.server.over.is_set():
            handler.wfile.write(bytes(2**16))
    except OSError:
        handler.server.hung_up.set()
    handler.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 50

    def handle_error(self, *_):
        """A client that hangs up is part of the play."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server(("127.0.0.1", 0), Handler)
    server.script, server.requests, server.over = {}, [], threading.Event()
    server.hung_up = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def fetch_from(server, ids, folder, **options):
    defaults = {"requests_per_second": 1000.0, "backoff": 0.01, "progress": False}
    urls = {"rcsb_url": f"{server.url}/files", "alphafold_url": f"{server.url}/api/"}
    return fetch(ids, folder, **urls | defaults | options)


def serve_entries(server, *ids):
    server.script |= {f"/files/{name}.cif.gz": [body(ENTRY)] for name in ids}


def model(server, accession, number=1, version=6, **fields):
    """An entry of the API's answer; the file is served."""
    path = f"/af/AF-{accession}-F{number}-model_v{version}.cif"
    server.script[path] = [body(MODEL)]
    return {"uniprotAccession": accession, "cifUrl": server.url + path, "latestVersion": version} | fields


def serve_models(server, accession, *entries):
    server.script[f"/api/{accession}"] = [body(json.dumps(entries).encode())]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_from_lists_and_files(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeff# my proteins\n4hhb\n\nA0A024R1R8  # the long form\r\n1ABC\npdb_10021ABC".encode())
    assert parse_ids(["1abc,p12345", " 2xyz 1ABC\n", str(path), "PDB_00001abc"]) == [
        "1ABC", "P12345", "2XYZ", "4HHB", "A0A024R1R8", "pdb_10021abc",
    ]  # fmt: skip


def test_what_reads_as_an_id_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1ABC").write_text("2XYZ\n")
    assert parse_ids(["1ABC"]) == ["1ABC"]
    assert parse_ids(["./1ABC"]) == ["2XYZ"]


@pytest.mark.parametrize("word", ["0ABC", "1ABCD", "P1234", "P12345-2", "A0A024R1R", "pdb_1abc", "../1ABC", "1A\0C"])
def test_bad_id(word):
    with pytest.raises(
        ValueError, match="neither a PDB id .* nor a UniProt accession .* nor a file; correct it"
    ) as error:
        parse_ids(["1ABC", f"2XYZ,{word}"])
    assert repr(word) in str(error.value)


def test_bad_lists(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("1ABC\n# fine\nhello\n")
    with pytest.raises(ValueError, match="ids.txt, line 3: 'hello' is neither .*; correct it or leave it out"):
        parse_ids([str(path)])
    path.write_bytes(ENTRY)
    with pytest.raises(ValueError, match="ids.txt is no text file"):
        parse_ids([str(path)])
    path.write_text("# nothing yet\n")
    for entries in ([str(path)], [], [" , "]):
        with pytest.raises(ValueError, match="no id in .*; give ids such as"):
            parse_ids(entries)


# --- files ------------------------------------------------------------------------------------------------------------


def test_order_and_duplicates(server, tmp_path):
    ids = ["3CCC", "1AAA", "2BBB", "pdb_10021abc"]
    serve_entries(server, *ids)
    server.script["/files/3CCC.cif.gz"].insert(0, status(500))  # comes last
    paths, failures = fetch_from(server, [*ids, "1aaa", "pdb_00002bbb"], tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{name}.cif.gz" for name in ids] and not failures
    assert names(tmp_path / "new" / "folder") == sorted(path.name for path in paths)
    assert len(server.requests) == 5
    assert all(agent.startswith("coordformer/") for _, agent in server.requests)


def test_what_was_fetched_can_be_read(server, tmp_path):
    serve_entries(server, "1A8O")
    serve_models(server, "P12345", model(server, "P12345"))
    (entry, predicted), failures = fetch_from(server, ["1A8O", "P12345"], tmp_path)
    assert not failures and entry.read_bytes() == ENTRY and predicted.read_bytes() == MODEL
    (original,), (chain,), (same,) = map(read_chains, (STRUCTURES / "1A8O.cif.gz", entry, predicted))
    assert chain.sequence == same.sequence == original.sequence
    np.testing.assert_array_equal(chain.coords, original.coords)
    np.testing.assert_array_equal(same.coords, original.coords)


TROUBLES = {
    "500": status(500),
    "503": status(503, Retry_After="0"),
    "429": status(429, Retry_After="soon"),
    "truncated": truncated(ENTRY),
    "no answer": no_answer,
    "half a gzip": body(ENTRY[: len(ENTRY) // 2]),
    "trailer cut off": body(ENTRY[:-4]),
    "wrong checksum": body(ENTRY[:-8] + b"\0" * 8),
    "empty": body(b""),
    "html": body(b"<html>Down for maintenance</html>"),
    "gzipped html": body(gzip.compress(b"<html>Down for maintenance</html>")),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_tried_again(server, tmp_path, trouble):
    serve_entries(server, "1A8O", "2BBB")
    server.script["/files/1A8O.cif.gz"][:0] = [trouble, trouble]
    paths, failures = fetch_from(server, ["1A8O", "2BBB"], tmp_path)
    assert not failures and [path.read_bytes() for path in paths] == [ENTRY, ENTRY]
    assert names(tmp_path) == ["1A8O.cif.gz", "2BBB.cif.gz"]
    assert len(server.requests) == 4


@pytest.mark.parametrize("trouble", [stall, trickle])
def test_stalls(server, tmp_path, trouble):
    serve_entries(server, "1A8O")
    server.script["/files/1A8O.cif.gz"].insert(0, trouble)
    paths, failures = fetch_from(server, ["1A8O"], tmp_path, timeout=0.5)
    assert not failures and paths[0].read_bytes() == ENTRY
    assert len(server.requests) >= 2
    server.script["/files/2BBB.cif.gz"] = [trouble]
    paths, [(name, reason)] = fetch_from(server, ["2BBB"], tmp_path, timeout=0.1, attempts=2)
    assert not paths and name == "2BBB" and ("stalls" in reason or "timed out" in reason)
    assert names(tmp_path) == ["1A8O.cif.gz"]


@pytest.mark.parametrize("answer", [chunked(ENTRY), body(ENTRY, Content_Encoding="gzip")], ids=["chunked", "encoding"])
def test_other_ways_to_send(server, tmp_path, answer):
    """A file that is gzipped already may be declared as compressed on the way; it is stored gzipped all the same."""
    server.script["/files/1A8O.cif.gz"] = [answer]
    [path], failures = fetch_from(server, ["1A8O"], tmp_path)
    assert not failures and path.read_bytes() == ENTRY


@pytest.mark.parametrize("form", [str, lambda s: format_datetime(datetime.now(UTC) + timedelta(seconds=s + 1), True)])
def test_waits_as_long_as_the_server_asks_for(server, tmp_path, form):
    serve_entries(server, "1A8O")
    server.script["/files/1A8O.cif.gz"].insert(0, lambda handler: status(503, Retry_After=form(1))(handler))
    start = time.monotonic()
    _, failures = fetch_from(server, ["1A8O"], tmp_path)
    assert not failures and time.monotonic() - start > 0.9


def test_the_body_of_an_error_is_not_read(server, tmp_path):
    serve_entries(server, "1A8O")
    server.script["/files/1A8O.cif.gz"].insert(0, endless_error)
    _, failures = fetch_from(server, ["1A8O"], tmp_path)
    assert not failures and server.hung_up.wait(5)


def test_failures_do_not_stop_the_others(server, tmp_path):
    serve_entries(server, "1AAA", "9ZZZ")
    server.script["/files/3FFF.cif.gz"] = [status(403)]
    server.script["/files/4DDD.cif.gz"] = [status(500)]
    server.script["/files/5EEE.cif.gz"] = [truncated(ENTRY)]
    paths, failures = fetch_from(server, ["5EEE", "1AAA", "2BBB", "3FFF", "4DDD", "9ZZZ"], tmp_path, attempts=3)
    assert [path.name for path in paths] == ["1AAA.cif.gz", "9ZZZ.cif.gz"]
    assert [name for name, _ in failures] == ["5EEE", "2BBB", "3FFF", "4DDD"]
    reasons = dict(failures)
    assert all("attempt 3 of 3; run again later" in reasons[name] for name in ("5EEE", "4DDD"))
    assert f"{server.url}/files/2BBB.cif.gz: the server answers 404 Not Found; check the id" in reasons["2BBB"]
    assert "403 Forbidden" in reasons["3FFF"] and "500 Internal Server Error" in reasons["4DDD"]
    counts = {name: sum(name in path for path, _ in server.requests) for name in reasons}
    assert counts == {"5EEE": 3, "2BBB": 1, "3FFF": 1, "4DDD": 3}
    assert names(tmp_path) == ["1AAA.cif.gz", "9ZZZ.cif.gz"]


def test_no_server(server, tmp_path):
    paths, [(name, reason)] = fetch(
        ["1A8O"], tmp_path, rcsb_url="http://127.0.0.1:1", attempts=2, backoff=0.01, progress=False
    )
    assert not paths and name == "1A8O" and not names(tmp_path)
    assert "refused" in reason and reason.endswith(", attempt 2 of 2; run again later")


def test_resume(server, tmp_path):
    ids = ["1AAA", "2BBB", "P12345", "Q12345"]
    serve_entries(server, "1AAA", "2BBB")
    for accession in ids[2:]:
        serve_models(server, accession, model(server, accession))
    first = fetch_from(server, ids, tmp_path)
    assert len(first[0]) == 4 and len(server.requests) == 6
    server.requests.clear()
    assert fetch_from(server, ids, tmp_path) == first
    assert not server.requests

    (tmp_path / "2BBB.cif.gz").unlink()
    (tmp_path / "2BBB.cif.gz.tmp").write_bytes(ENTRY[:100])  # as a killed process leaves it
    assert fetch_from(server, ids, tmp_path) == first
    assert [path for path, _ in server.requests] == ["/files/2BBB.cif.gz"]
    assert (tmp_path / "2BBB.cif.gz").read_bytes() == ENTRY and len(names(tmp_path)) == 4


def test_two_at_once_in_one_folder(server, tmp_path):
    """The second is refused while the first waits for the server, whose half a file it leaves alone."""
    server.script["/files/1A8O.cif.gz"] = [stall]
    options = {"timeout": 20.0, "attempts": 1}
    first = threading.Thread(target=fetch_from, args=(server, ["1A8O"], tmp_path / "in"), kwargs=options)
    first.start()
    while not list(tmp_path.glob("in/*.tmp")):
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match=f"^{tmp_path / 'in'}: another run is writing there; wait for its end"):
        fetch_from(server, ["1A8O"], tmp_path / "in")
    assert list(tmp_path.glob("in/*.tmp")) and len(server.requests) == 1
    server.over.set()
    first.join()
    server.script["/files/1A8O.cif.gz"] = [body(ENTRY)]
    assert fetch_from(server, ["1A8O"], tmp_path / "in") == ([tmp_path / "in" / "1A8O.cif.gz"], [])
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["1A8O.cif.gz"]


def test_rate(server, tmp_path):
    """Six requests of four connections, a retry among them, are five intervals of 50 ms."""
    ids = ["1AAA", "2BBB", "3CCC", "4DDD", "5EEE"]
    serve_entries(server, *ids)
    server.script["/files/1AAA.cif.gz"].insert(0, status(500))
    start = time.monotonic()
    fetch_from(server, ids, tmp_path, requests_per_second=20.0)
    assert time.monotonic() - start > 0.24 and len(server.requests) == 6


def test_size_is_bounded(server, tmp_path, monkeypatch):
    monkeypatch.setattr("coordformer.data.fetch.MAX_BYTES", len(ENTRY))  # less than what it holds
    serve_entries(server, "1AAA")
    server.script["/files/2BBB.cif.gz"] = [body(ENTRY + b"\0")]
    paths, [(_, bomb), (_, large)] = fetch_from(server, ["1AAA", "2BBB"], tmp_path)
    assert (
        f"{server.url}/files/1AAA.cif.gz: the file" in bomb
        and "is it a gzip bomb?" in bomb
        and "no structure is so large" in large
    )
    assert not paths and not names(tmp_path) and len(server.requests) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(server, tmp_path):
    serve_entries(server, "1AAA", "2BBB")
    fetch_from(server, ["1AAA"], tmp_path)
    (tmp_path / "2BBB.cif.gz.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="2BBB.cif.gz.tmp cannot be written .No space left on device.; make room"):
        fetch_from(server, ["1AAA", "2BBB"], tmp_path)
    assert names(tmp_path) == ["1AAA.cif.gz"]


def test_interrupt(server, tmp_path):
    ids = [f"1A{i:02}" for i in range(60)]
    serve_entries(server, *ids)

    def interrupt(handler):
        os.kill(os.getpid(), signal.SIGINT)
        body(ENTRY)(handler)

    server.script["/files/1A03.cif.gz"].insert(0, interrupt)
    server.script["/files/1A02.cif.gz"].insert(0, status(503, Retry_After="60"))
    # Of a process that a shell starts in the background the signal is ignored.
    before, start = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch_from(server, ids, tmp_path, requests_per_second=20.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(server.requests) < len(ids) and time.monotonic() - start < 10
    assert all((tmp_path / name).read_bytes() == ENTRY for name in names(tmp_path))
    paths, failures = fetch_from(server, ids, tmp_path, connections=8)
    assert len(paths) == len(ids) and not failures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests_per_second": 0}, "`requests_per_second` is 0; it must be above 0"),
        ({"requests_per_second": float("nan")}, "`requests_per_second` is nan"),
        ({"timeout": -1.0}, "`timeout` is -1.0; it must be above 0"),
        ({"attempts": 0}, "`attempts` is 0; it must be at least 1"),
        ({"connections": 0}, "`connections` is 0; it must be at least 1"),
        ({"backoff": -0.1}, "`backoff` is -0.1; it must be at least 0"),
        ({"rcsb_url": "files.rcsb.org"}, "`rcsb_url` is 'files.rcsb.org'; it must start with http"),
        ({"alphafold_url": "file:///etc"}, "`alphafold_url` is 'file:///etc'; it must start with http"),
        ({"ids": ["1ABC", "nonsense"]}, "'nonsense' is neither a PDB id"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fetch(**{"ids": ["1ABC"], "folder": tmp_path / "out"} | options)
    assert not (tmp_path / "out").exists()


# --- AlphaFold DB -----------------------------------------------------------------------------------------------------


def test_isoforms_are_left_out(server, tmp_path):
    isoform = model(server, "P12345-2")
    mislabeled = model(server, "P12345-3", uniprotAccession="P12345")
    serve_models(server, "P12345", isoform, mislabeled, model(server, "P12345", version=7), None)
    [path], failures = fetch_from(server, ["p12345"], tmp_path)
    assert path.name == "AF-P12345-F1-model_v7.cif" and not failures and names(tmp_path) == [path.name]


def test_newest_model_that_lies_there(server, tmp_path):
    for name in ("AF-P12345-F1-model_v4.cif", "AF-P12345-F1-model_v10.cif.gz", "AF-P12345-2-F1-model_v11.cif"):
        (tmp_path / name).write_bytes(b"data_")
    paths, _ = fetch_from(server, ["P12345"], tmp_path)
    assert [path.name for path in paths] == ["AF-P12345-F1-model_v10.cif.gz"] and not server.requests


def test_fragments_come_all_or_not_at_all(server, tmp_path):
    serve_models(server, "P12345", *(model(server, "P12345", number) for number in (10, 2, 1)))
    last = server.script["/af/AF-P12345-F10-model_v6.cif"]
    last[:] = [truncated(MODEL)]
    paths, [(name, reason)] = fetch_from(server, ["P12345"], tmp_path, attempts=2)
    assert not paths and name == "P12345" and "F10" in reason and not names(tmp_path)
    last[:] = [body(MODEL)]
    first = fetch_from(server, ["P12345"], tmp_path)
    assert [path.name for path in first[0]] == [f"AF-P12345-F{number}-model_v6.cif" for number in (1, 2, 10)]
    server.requests.clear()
    assert fetch_from(server, ["P12345"], tmp_path) == first and not server.requests


@pytest.mark.parametrize("answer", [b"<html>sorry</html>", b"[{", b"[" * 10**5, b"\xff\xfe"])
def test_no_json(server, tmp_path, answer):
    server.script["/api/P12345"] = [body(answer)]
    paths, [(_, reason)] = fetch_from(server, ["P12345"], tmp_path, attempts=2)
    assert not paths and "/api/P12345: the answer is no JSON" in reason and len(server.requests) == 2
    serve_models(server, "P12345", model(server, "P12345"))
    server.script["/api/P12345"].insert(0, body(answer))
    paths, failures = fetch_from(server, ["P12345"], tmp_path)
    assert len(paths) == 1 and not failures


@pytest.mark.parametrize("answer", [[], {}, None, 3, [{}], [[]], [{"uniprotAccession": "P12345"}]])
def test_other_json(server, tmp_path, answer):
    server.script["/api/P12345"] = [body(json.dumps(answer).encode())]
    paths, [(_, reason)] = fetch_from(server, ["P12345"], tmp_path)
    assert not paths and "lists no file AF-P12345-F1-model_v*.cif" in reason and len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "{server}/af/../../evil.cif",
        "{server}/af/..%2f..%2fAF-P12345-F1-model_v6.cif",
        "{server}/af/..\\AF-P12345-F1-model_v6.cif",
        "{server}/af/.AF-P12345-F1-model_v6.cif",
        "{server}/af/AF-Q12345-F1-model_v6.cif",
        "{server}/af/AF-P12345-F1-model_v6.cif?/../x",
        "{server}/af/AF-P12345-F1-model_v6.cif\n",
        "{server}/af/AF-P12345-F" + 5000 * "1" + "-model_v6.cif",
        "file:///etc/passwd",
        "file:///etc/AF-P12345-F1-model_v6.cif",
        "AF-P12345-F1-model_v6.cif",
        ["AF-P12345-F1-model_v6.cif"],
    ],
)
def test_hostile_addresses(server, tmp_path, url):
    url = url.format(server=server.url) if isinstance(url, str) else url
    serve_models(server, "P12345", model(server, "P12345", cifUrl=url))
    paths, [(_, reason)] = fetch_from(server, ["P12345"], tmp_path / "a" / "b")
    assert not paths and str(url) in reason and len(server.requests) == 1
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["b"] and not names(tmp_path / "a" / "b")


@pytest.mark.parametrize("host", ["[::1", "127.0.0.1:99999", "*", "a..b", "127.0.0.1:1", "x" * 70 + ".invalid"])
def test_impossible_hosts(server, tmp_path, host):
    serve_models(server, "P12345", model(server, "P12345", cifUrl=f"http://{host}/AF-P12345-F1-model_v6.cif"))
    paths, [(_, reason)] = fetch_from(server, ["P12345"], tmp_path, attempts=2)
    assert not paths and host in reason and not names(tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def test_prepare_fetches_what_it_reads(server, tmp_path, capsys):
    serve_entries(server, "1A8O")
    serve_models(server, "P12345", model(server, "P12345"))
    urls = ["--rcsb_url", f"{server.url}/files", "--alphafold_url", f"{server.url}/api"]
    command = ["prepare", "--output", str(tmp_path / "out"), "--workers", "1", "--quiet", "--json", *urls, "--fetch"]
    assert main([*command, "1A8O", "P12345", "9XYZ"]) == 1  # before anything is read
    assert "1 of the ids could not be fetched; the first: 9XYZ" in capsys.readouterr().err
    assert main([*command, "1A8O", "P12345", "9XYZ", "--allow_missing"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["files"], counts["chains"], counts["duplicates_merged"], counts["rejected"]) == (2, 1, 1, 1)
    assert load_rows(tmp_path / "out")["source"][:] == ["1A8O.cif.gz"]
    assert "9XYZ\t\t" in (tmp_path / "out" / "rejected.tsv").read_text()
    assert names(tmp_path / "out" / "downloads") == ["1A8O.cif.gz", "AF-P12345-F1-model_v6.cif"]
    asked = len(server.requests)
    assert main([*command, "1A8O", "--min_length", "0"]) == 1 and len(server.requests) == asked
    assert "`min_length` is 0" in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path / "two"), *command[3:], "9XYZ", "--allow_missing"]) == 1
    assert "1 of the ids could not be fetched; the first: 9XYZ" in capsys.readouterr().err
