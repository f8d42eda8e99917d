"""The conversation in a terminal, over an assistant that is handed in."""

import sys

from kit.agent import Answer, Assistant
from kit.config import KitError
from kit.retriever import cite

HELP = "/sources the quotes behind the last answer · /steps what was done · /clear forget · /quit"


def terminal(assistant: Assistant, ask=input, out=sys.stdout) -> None:
    """Ask, answer, and keep the conversation until `/quit` or the end of input.

    `ask` reads a line (it raises `EOFError` at the end), `out` is written to. Ctrl-C stops a running
    answer and returns to the prompt.
    """
    last: Answer | None = None
    print(HELP, file=out)
    while True:
        try:
            line = ask("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line == "/clear":
            assistant.clear()
            last = None
            print("The conversation is forgotten.", file=out)
        elif line in ("/sources", "/steps"):
            show = format_sources if line == "/sources" else format_steps
            print(show(last) if last else "There is no answer yet.", file=out)
        elif line.startswith("/"):
            print(HELP, file=out)
        elif line:
            last = _answer(assistant, line, out) or last


def _answer(assistant: Assistant, question: str, out) -> Answer | None:
    try:
        answer = assistant.ask(question, follow_up=True)
    except KeyboardInterrupt:
        print("Stopped.", file=out)
        return None
    except KitError as error:
        print(error, file=out)
        return None
    print(answer.answer, file=out)
    print(format_cost(answer), file=out)
    return answer


def format_answer(answer: Answer) -> str:
    """The answer with its sources, steps and cost, for a terminal."""
    parts = [answer.answer, format_sources(answer), format_steps(answer), format_cost(answer)]
    return "\n\n".join(part for part in parts if part)


def format_sources(answer: Answer) -> str:
    """A line for each source, with its quote; says so where a quote was dropped."""
    lines = [f"  {cite(s['source'], s['page'])}" + (f": “{s['quote']}”" if s["quote"] else "") for s in answer.sources]
    dropped = sum(step["verdict"]["dropped"] for step in answer.steps if step["verdict"])
    if dropped:
        lines.append(f"  ({dropped} quotation{'s' * (dropped > 1)} not found word for word, and dropped)")
    return "\n".join(["Sources", *lines]) if lines else ""


def format_steps(answer: Answer) -> str:
    """A line for each search: the query, the passages read, and the verdict."""
    lines = []
    for n, step in enumerate(answer.steps, 1):
        lines.append(f"  {n}. search “{step['query']}”, {len(step['read'])} passages read, {step['seconds']:.1f} s")
        if verdict := step["verdict"]:
            better = f"; better query: “{verdict['better_query']}”" if verdict["better_query"] else ""
            lines.append("     " + ("sufficient" if verdict["sufficient"] else f"not sufficient{better}"))
    return "\n".join(["Steps", *lines]) if lines else ""


def format_cost(answer: Answer) -> str:
    """One line: calls, tokens and seconds."""
    usage = answer.usage
    return (
        f"{usage['calls']} model calls · {usage['prompt_tokens']} tokens read · {usage['output_tokens']} written · "
        f"{answer.seconds:.1f} s (models {usage['engine_seconds']:.1f}, loading {usage['load_seconds']:.1f}, "
        f"search {usage['search_seconds']:.1f})"
    )
