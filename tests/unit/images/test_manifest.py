"""Manifests, indexes and configurations from strangers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.errors import ImageInvalid, ImageNotFound
from fargatelite.images import manifest
from fargatelite.images.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_config,
    parse_manifest,
)

AMD, ARM = "linux/amd64", "linux/arm64"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def _digest(character: str) -> str:
    return "sha256:" + character * 64


def _descriptor(character: str = "a", **more: Any) -> dict[str, Any]:
    return {"mediaType": LAYER_TYPE, "digest": _digest(character), "size": 5, **more}


def _manifest(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor("c"),
        "layers": [_descriptor("1"), _descriptor("2")],
        **more,
    }


def _index(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **more}


def _for(character: str, architecture: str, system: str = "linux", **more: str) -> dict[str, Any]:
    platform = {"architecture": architecture, "os": system, **more}
    return _descriptor(character, mediaType=OCI_MANIFEST, platform=platform)


def _parse(document: object, content_type: str = "", platform: str = AMD) -> Manifest | Descriptor:
    return parse_manifest(json.dumps(document).encode(), content_type, platform)


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_manifest(kind: str) -> None:
    found = _parse(_manifest(mediaType=kind), kind)
    assert isinstance(found, Manifest)
    assert found.config.digest == _digest("c")
    assert [layer.digest for layer in found.layers] == [_digest("1"), _digest("2")]
    assert found.layers[0].media_type == LAYER_TYPE


@pytest.mark.parametrize("content_type", ["", OCI_MANIFEST, f"{OCI_MANIFEST}; charset=utf-8"])
def test_media_type_may_be_in_the_header_alone(content_type: str) -> None:
    document = _manifest()
    del document["mediaType"]
    assert isinstance(_parse(document, content_type), Manifest)


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_LIST])
@pytest.mark.parametrize(("platform", "expected"), [(AMD, "a"), (ARM, "b")])
def test_index_gives_the_platforms_entry(kind: str, platform: str, expected: str) -> None:
    document = _index(
        _for("w", "amd64", "windows"), _for("b", "arm64", variant="v8"), _for("a", "amd64"),
        _for("0", "unknown", "unknown"), mediaType=kind,
    )  # fmt: skip
    document["manifests"][0]["digest"] = _digest("e")
    found = _parse(document, kind, platform)
    assert isinstance(found, Descriptor)
    assert found.digest == _digest(expected)


def test_index_without_the_platform_says_what_fargate_says() -> None:
    with pytest.raises(ImageNotFound) as caught:
        _parse(_index(_for("a", "amd64"), _descriptor("b")), OCI_INDEX, ARM)
    assert str(caught.value) == (
        "image Manifest does not contain descriptor matching platform 'linux/arm64'"
    )


@pytest.mark.parametrize("kind", [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, None])
@pytest.mark.parametrize("part", ["layers", "config"])
def test_manifest_and_index_in_one_is_refused(kind: str | None, part: str) -> None:
    document = _index(_for("a", "amd64"))
    document[part] = _manifest()[part]
    document["mediaType"] = kind
    if kind is None:
        del document["mediaType"]
    with pytest.raises(ImageInvalid, match="CVE-2021-41190"):
        _parse(document, kind or OCI_INDEX)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (_manifest(mediaType=OCI_INDEX), ""),
        (_manifest(mediaType=DOCKER_LIST), ""),
        (_index(_for("a", "amd64"), mediaType=OCI_MANIFEST), ""),
        (_manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"), ""),
        (_manifest(mediaType="application/vnd.oci.artifact.manifest.v1+json"), ""),
        (_manifest(mediaType=["x"]), ""),
        (_manifest(mediaType=None) | {"mediaType": None}, OCI_INDEX),
        # What the header says decides for others what the document is: it may not differ.
        (_manifest(), OCI_INDEX),
        (_index(_for("a", "amd64")), OCI_MANIFEST),
        (_index(_for("a", "amd64"), mediaType=None), DOCKER_MANIFEST),
    ],
)
def test_media_type_that_differs_from_the_document_is_refused(
    document: dict[str, Any], content_type: str
) -> None:
    with pytest.raises(ImageInvalid):
        _parse(document, content_type)


@pytest.mark.parametrize("version", [1, 3, "2", None])
def test_other_schema_versions_are_named(version: object) -> None:
    with pytest.raises(ImageInvalid, match=f"schema version {version!r}, not 2"):
        _parse(_manifest(schemaVersion=version))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [_descriptor("1", digest="sha256:" + "A" * 64)]},
        {"layers": [_descriptor("1", digest="sha256:../../etc/passwd")]},
        {"layers": [_descriptor("1", digest="md5:" + "a" * 32)]},
        {"layers": [_descriptor("1", digest=_digest("1") + "\n")]},
        {"layers": [_descriptor("1", size=-1)]},
        {"layers": [_descriptor("1", size=2**70)]},
        {"layers": [_descriptor("1", size="5")]},
        {"layers": [{"digest": _digest("1")}]},
        {"layers": "none"},
        {"layers": None},
        {"config": _descriptor("c", digest="")},
        {"config": []},
    ],
)
def test_bad_descriptors_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ImageInvalid, match="manifest"):
        _parse(_manifest(**change))


def test_bad_digest_of_an_index_entry_is_refused() -> None:
    entry = _for("a", "amd64") | {"digest": "sha256:x"}
    with pytest.raises(ImageInvalid, match="index: digest 'sha256:x' is no sha256 digest"):
        _parse(_index(entry))


def test_bounds() -> None:
    many = [_descriptor("1")] * (manifest.MAX_LAYERS + 1)
    with pytest.raises(ImageInvalid, match="513 layers; at most 512"):
        _parse(_manifest(layers=many))
    assert isinstance(_parse(_manifest(layers=many[1:])), Manifest)
    with pytest.raises(ImageInvalid, match="at most 4194304"):
        parse_manifest(b" " * (manifest.MAX_MANIFEST_BYTES + 1), "", AMD)


NESTED = b'{"schemaVersion": 2, "x": ' + b"[" * 200_000


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ImageInvalid):
        parse_manifest(NESTED, "", AMD)
    with pytest.raises(ImageInvalid):
        parse_config(NESTED)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size",
             "platform", "os", "architecture", "rootfs", "diff_ids", "Env", "Cmd", "x"]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in (lambda: parse_manifest(data, "", AMD), lambda: parse_config(data)):
        try:
            parse()
        except (ImageInvalid, ImageNotFound):
            continue


@given(_JSON)
def test_any_part_of_a_manifest_is_parsed_or_refused(value: object) -> None:
    for key in ("config", "layers", "mediaType", "manifests", "schemaVersion"):
        document = _manifest() if key != "manifests" else _index()
        document[key] = value
        try:
            _parse(document)
        except (ImageInvalid, ImageNotFound):
            continue


def _config(**process: Any) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": process,
            "rootfs": {"type": "layers", "diff_ids": [_digest("d")]},
        }
    ).encode()


def test_config() -> None:
    config, diff_ids = parse_config(
        _config(
            Entrypoint=["/bin/app"], Cmd=["-x"], Env=["A=1"], WorkingDir="/srv", User="app:app",
            StopSignal="SIGQUIT", Volumes={"/data": {}}, Labels={"a": "b"},
            Healthcheck={"Test": ["CMD", "true"]}, ExposedPorts={"80/tcp": {}},
        )
    )  # fmt: skip
    assert diff_ids == (_digest("d"),)
    assert (config.entrypoint, config.cmd, config.env) == (("/bin/app",), ("-x",), ("A=1",))
    assert (config.working_dir, config.user, config.stop_signal) == ("/srv", "app:app", "SIGQUIT")
    assert (config.volumes, config.labels) == (("/data",), {"a": "b"})
    assert (config.os, config.architecture) == ("linux", "amd64")


def test_config_of_nulls_is_an_empty_one() -> None:
    config, _ = parse_config(
        _config(Entrypoint=None, Cmd=None, Env=None, Volumes=None, Labels=None, User=None)
    )
    assert (config.entrypoint, config.cmd, config.env, config.user) == (None, None, (), "")


@pytest.mark.parametrize(
    "process",
    [
        {"Cmd": ["a\0b"]}, {"Env": ["A=\0"]}, {"Entrypoint": ["\0"]}, {"WorkingDir": "/a\0"},
        {"User": "a\0"}, {"Volumes": {"/a\0": {}}}, {"StopSignal": "9\0"},
    ],
)  # fmt: skip
def test_nul_bytes_are_refused(process: dict[str, Any]) -> None:
    with pytest.raises(ImageInvalid, match="NUL byte"):
        parse_config(_config(**process))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b'{"rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}}',
        b'{"rootfs": {"type": "layers"}}', _config(Cmd="text"), _config(Env=[1]),
    ],
)  # fmt: skip
def test_bad_configs_are_refused(data: bytes) -> None:
    with pytest.raises(ImageInvalid, match="image configuration"):
        parse_config(data)
