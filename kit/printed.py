"""How each result of a command is shown to a reader; `--json` prints the result itself."""


def setup(result: dict) -> str:
    engine = result["engine"]
    lines = [f"profile  {result['profile']} ({result['why']})"]
    if engine:
        lines.append(f"engine   Ollama {engine['version']}, {engine['source']}: {engine['path']}")
    lines += [f"{m['role']:<8} {m['name']}, window {m['num_ctx']}, {m['source']}" for m in result["models"]]
    return "\n".join([*lines, f"Ready after {result['seconds']:.0f} s."])


def doctor(result: dict) -> str:
    lines = []
    for check in result["checks"]:
        lines.append(f"{'OK  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
        if not check["ok"]:
            lines.append(f"     → {check['remedy']}")
    return "\n".join(lines)


def ingest(result: dict) -> str:
    lines = [
        f"{result['files']} files, {result['pages']} pages, {result['chunks']} chunks in the index after "
        f"{result['seconds']:.1f} s ({result['added']} added, {result['unchanged']} unchanged, "
        f"{result['removed']} removed, {len(result['failed'])} failed)"
    ]
    return "\n".join(lines + [f"failed: {f['file']}: {f['error']}" for f in result["failed"]])


def evaluation(result: dict) -> str:
    columns = {
        "n": "n",
        "errors": "errors",
        "em": "em",
        "f1": "f1",
        "abstention_recall": "declined right",
        "answerable_declined": "declined wrong",
        "calls": "calls",
        "prompt_tokens": "read",
        "output_tokens": "written",
        "seconds_p50": "s p50",
        "seconds_p90": "s p90",
    }
    lines = [["mode", *columns.values()]]
    lines += [
        [mode, *("" if row[key] is None else f"{row[key]:g}" for key in columns)]
        for mode, row in result["modes"].items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    tests = [
        f"{t['b']} against {t['a']}, {t['type']}: {t['measure']} {t['delta']:+.3f} (p {t['p']:.4f}, {t['test']})"
        for t in result["paired"]
    ]
    found = ", ".join(f"{name} {value}" for name, value in result["retrieval"].items())
    stand_in = result["stand_in_reasoner"]
    played = ["The reasoner is a stand-in: these figures are not those of a reasoning model."] * stand_in
    return "\n".join([*table, "", *tests, "", f"retrieval: {found}", *result["plots"], *played])


def finetuning(result: dict) -> str:
    loss = result["loss"]
    lines = [
        f"{result['rows']} rows, {result['too_long']} too long, {result['leaked']} too much like a test question",
        f"{result['steps']} steps in {result['seconds']:.0f} s"
        + (f", loss {loss['first']:.3f} to {loss['last']:.3f}" if loss else ""),
    ]
    if result["profile"]:
        lines.append(f"now: kit setup --profile {result['profile']}; kit ask --profile {result['profile']} QUESTION")
    return "\n".join(lines)


def distillation(result: dict) -> str:
    kinds = ", ".join(f"{kind} {n}" for kind, n in result["by_type"].items())
    lines = [f"{result['accepted']} accepted ({kinds})"]
    lines += [f"rejected, {reason}: {n}" for reason, n in result["rejected"].items()]
    played = ["The teacher is a stand-in: a small general model."] * result["stand_in_teacher"]
    return "\n".join(lines + played)


def passages(result: dict) -> str:
    from kit.retriever import cite

    return "\n\n".join(
        f"{n}. {cite(hit['source'], hit['page'])} (score {hit['score']:.3f})\n{hit['text']}"
        for n, hit in enumerate(result["hits"], 1)
    )


def answer(result: dict) -> str:
    from kit import chat
    from kit.agent import Answer

    return chat.format_answer(Answer(**result))


def thread(result: dict) -> str:
    return f"{result['id']}  {result['turns']} turns  {result['title'] or ''}".rstrip()
