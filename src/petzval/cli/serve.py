"""`petzval serve`: the studio for everybody who can reach this machine, and the keys to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petzval.cli import options
from petzval.cli.console import complain, print_json, print_line, stderr
from petzval.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    from petzval.server.keys import Keys

DEFAULT_FOLDER = Path("~/.local/share/petzval/studio")

Data = Annotated[
    Path, typer.Option("--data", help="Folder of jobs, pictures and keys.", metavar="FOLDER")
]


def _run(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model by name or folder; give it again for several. The first is the default. "
            "[default: mini]",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="Offer a LoRA: NAME=FILE; give it again for several.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A further name of this server in Host headers.", show_default=False),
    ] = None,
    data: Data = DEFAULT_FOLDER,
    keys: Annotated[
        bool | None,
        typer.Option(
            "--keys/--no-keys",
            help="Ask callers for a key. [default: unless the host is this machine alone]",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[int, typer.Option(help="Jobs that may wait.", min=1)] = 256,
    batch_size: Annotated[
        int, typer.Option(help="Pictures that run through the networks together.", min=1)
    ] = 1,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the networks: the usual size at the start, any other with its first "
            "picture, which waits for it.",
        ),
    ] = False,
    max_pixels: Annotated[int, typer.Option(help="Largest picture, in pixels.", min=256)] = 1440
    * 1440,
    max_pictures: Annotated[int, typer.Option(help="Most pictures of a job.", min=1)] = 10,
    max_steps: Annotated[int, typer.Option(help="Most steps of a picture.", min=1)] = 100,
    rate: Annotated[
        float, typer.Option(help="Jobs a minute that one caller may start.", min=0.1)
    ] = 600.0,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name of a model: ALIAS=MODEL, for programs that insist on one.",
            show_default=False,
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser when it is ready.")
    ] = False,
    check: Annotated[
        list[str] | None,
        typer.Option(help="A content check that an installed package offers.", show_default=False),
    ] = None,
    mark: options.Mark = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="Sign pictures (C2PA) with this chain, PEM.", show_default=False),
    ] = None,
    certificate_key: Annotated[
        Path | None, typer.Option(help="The certificate's key, PEM.", show_default=False)
    ] = None,
    algorithm: Annotated[
        str, typer.Option(help="Of the signature: es256, es384, ps256, ed25519.")
    ] = "es256",
    ray: Annotated[
        bool, typer.Option("--ray", help="Draw with replicas on Ray Serve, on many devices.")
    ] = False,
    replicas: Annotated[int, typer.Option(help="With --ray: replicas that draw.", min=1)] = 2,
    encoders: Annotated[
        int,
        typer.Option(help="With --ray: replicas that encode prompts for all; 0 for none.", min=0),
    ] = 1,
    cpus: Annotated[float, typer.Option(help="With --ray: CPUs of a replica.", min=0)] = 1.0,
    gpus: Annotated[float, typer.Option(help="With --ray: GPUs of a replica.", min=0)] = 0.0,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="With --ray: a cluster, such as auto. [default: one on this machine]",
            show_default=False,
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into the log.")
    ] = False,
    memory: options.Memory = None,
    ram: options.Ram = None,
    quantise: options.Quantise = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
) -> None:
    """Run the studio: a page, jobs that survive a restart, and OpenAI's Images API.

    Listens on this machine alone unless --host says otherwise; then every caller needs a key.
    Prints the address on stdout when it is ready.
    """
    if context.invoked_subcommand is not None:
        return
    _require_extra()
    with stderr().status("loading"):
        from petzval.server.run import Serving, serve
        from petzval.server.settings import Limits, ServerSettings

    settings = ServerSettings(
        folder=_folder(data),
        host=host,
        port=port,
        names=tuple(name or ()),
        keys=keys,
        limits=Limits(
            max_pictures=max_pictures,
            max_pixels=max_pixels,
            max_steps=max_steps,
            jobs_per_minute=rate,
        ),
        aliases=_pairs("--alias", alias),
        log_prompts=log_prompts,
        mark=mark or "",
    )
    if not settings.is_local and not settings.needs_keys:
        complain("warning", "everybody who can reach this machine may use the studio: no keys")
    models = tuple(model or [options.DEFAULT_MODEL])
    loras = {each: Path(file) for each, file in _pairs("--lora", lora).items()}
    shared: dict[str, Any] = {
        "models": models,
        "loras": loras,
        "device": device,
        "dtype": "auto" if dtype is None else dtype,
        "threads": threads,
        "batch_size": batch_size,
        "compile": compile,
        "memory": memory,
        "ram": ram,
        "quantise": "exact" if quantise is None else quantise,
    }
    pool = None
    if ray:
        from petzval.server.pool import PoolSettings

        pool = PoolSettings(
            **shared,
            replicas=replicas,
            encoders=encoders,
            cpus=cpus,
            gpus=gpus,
            address=ray_address,
        )
    serve(
        Serving(
            **shared,
            settings=settings,
            capacity=queue,
            checks=tuple(check or ()),
            certificate=certificate,
            certificate_key=certificate_key,
            algorithm=algorithm,
            pool=pool,
        ),
        ready=_show if open_page else print_line,
    )


def _show(address: str) -> None:
    """Say where the page is, and open it; what opens it may take its time."""
    import threading
    import webbrowser

    def show() -> None:
        if not webbrowser.open(address):
            complain("warning", f"there is no browser here; the page is at {address}")

    print_line(address)
    threading.Thread(target=show, name="petzval-open", daemon=True).start()


def _add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in the list.")],
    data: Data = DEFAULT_FOLDER,
    max_pictures: Annotated[int | None, typer.Option(help="Most pictures of a job.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture, in pixels.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most steps of a picture.")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Jobs that may wait.")] = None,
    rate: Annotated[float | None, typer.Option(help="Jobs a minute.")] = None,
    weight: Annotated[float | None, typer.Option(help="Share beside other keys' (1).")] = None,
) -> None:
    """Make a key and print it. It is shown this once; only its hash is kept."""
    given: dict[str, Any] = {
        "max_pictures": max_pictures,
        "max_pixels": max_pixels,
        "max_steps": max_steps,
        "max_waiting": max_waiting,
        "jobs_per_minute": rate,
        "weight": weight,
    }
    own = {setting: value for setting, value in given.items() if value is not None}
    keys = _keys(data)
    from petzval.server.settings import Limits

    print_line(keys.add(name, Limits(**own) if own else None))


def _list_keys(
    data: Data = DEFAULT_FOLDER,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a key.")] = False,
) -> None:
    """List the keys: id, name, when each was made and revoked."""
    import datetime

    def day(time: float | None) -> str:
        return "" if time is None else datetime.datetime.fromtimestamp(time).strftime("%Y-%m-%d")

    for row in _keys(data).rows():
        facts = {"id": row.id, "name": row.name, "made": day(row.created)}
        facts |= {"revoked": day(row.revoked)}
        if json:
            print_json(facts | {"limits": row.limits})
        else:
            state = f"revoked {facts['revoked']}" if row.revoked else "valid"
            print_line(f"{row.id}  made {facts['made']}  {state}  {row.name}")


def _revoke_key(
    id: Annotated[str, typer.Argument(help="As the list shows it.")],
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Refuse a key from now on."""
    _keys(data).revoke(id)


def _keys(data: Path) -> Keys:
    _require_extra()
    from petzval.server.keys import Keys
    from petzval.server.store import Store

    return Keys(Store(_folder(data)))


def _require_extra() -> None:
    for package in ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "server")


def _folder(data: Path) -> Path:
    from petzval.inference.paths import user_path

    return user_path(data)


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise RequestError(f"cannot read {option} {text[:80]!r}", f"write {option} NAME=VALUE")
        pairs[name] = value
    return pairs


serve: Mapping[str, Callable[..., object] | Mapping[str, Callable[..., object]]] = {
    "": _run,
    "keys": {"add": _add_key, "list": _list_keys, "revoke": _revoke_key},
}
