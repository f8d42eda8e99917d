"""The conversation in a terminal or in a notebook, over an assistant that is handed in; the web page is `kit.web`."""

import html
import queue
import sys
import threading
from collections.abc import Iterator

from kit.agent import Answer, Assistant
from kit.config import KitError
from kit.llm import Cancelled
from kit.retriever import cite

SHOWN = ("answer", "sources", "context")  # how much is shown with an answer
HELP = (
    "/sources the quotes behind the last answer · /context the passages that were read · /steps what was done · "
    "/history the conversation · /show answer, sources or context: what comes with every answer · /clear forget · /quit"
)


def terminal(assistant: Assistant, ask=input, out=sys.stdout) -> None:
    """Ask, answer, and keep the conversation until `/quit` or the end of input.

    `ask` reads a line (it raises `EOFError` at the end), `out` is written to. Ctrl-C stops a running
    answer and returns to the prompt.
    """
    answers: list[tuple[str, Answer]] = []
    of_last = {"/sources": format_sources, "/context": format_context, "/steps": format_steps}
    show = SHOWN[0]
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
            answers.clear()
            print("The conversation is forgotten.", file=out)
        elif line in of_last:
            print(of_last[line](answers[-1][1]) if answers else "There is no answer yet.", file=out)
        elif line == "/history":
            print(
                "\n".join(f"> {asked}\n{said.answer}" for asked, said in answers) or "Nothing was said yet.", file=out
            )
        elif line.startswith("/show ") and line[6:] in SHOWN:
            show = line[6:]
            print(f"With every answer: {show}.", file=out)
        elif line.startswith("/"):
            print(HELP, file=out)
        elif line and (answer := _answer(assistant, line, show, out)):
            answers.append((line, answer))


def _answer(assistant: Assistant, question: str, show: str, out) -> Answer | None:
    try:
        answer = assistant.ask(question, follow_up=True)
    except KeyboardInterrupt:
        print("Stopped.", file=out)
        return None
    except KitError as error:
        print(error, file=out)
        return None
    parts = [answer.answer, _beside(answer, show), format_cost(answer)]
    print("\n".join(part for part in parts if part), file=out)
    return answer


class Conversation:
    """One person's talk with an assistant, made to be watched and to be stopped."""

    def __init__(self, assistant: Assistant):
        self.assistant, self._said = assistant, queue.Queue()
        self._written = ""
        assistant.tool.on_event, assistant.reasoner.model.on_text = self._event, self._piece

    def ask(self, question: str) -> Iterator[str | Answer | Exception]:
        """Lines about what is being done, and last the `Answer`, or the error that ended it (`Cancelled` after `stop`).

        The answer is made in a thread. Whoever stops reading stops the answer.
        """
        worker = threading.Thread(target=self._answer, args=(question,), daemon=True)
        worker.start()
        try:
            while isinstance(said := self._said.get(), str):
                yield said
            yield said
        finally:
            if worker.is_alive():
                self.stop()
            worker.join()
            self._said = queue.Queue()

    def stop(self) -> None:
        """End the answer that is being made, from any thread."""
        self.assistant.cancel()

    def _answer(self, question: str) -> None:
        try:
            self._said.put(self.assistant.ask(question, follow_up=True))
        except Exception as error:  # nobody else would see it: this is a thread's own stack
            self._said.put(error)

    def _event(self, kind: str, details: dict) -> None:
        self._written = ""
        if kind == "search":
            self._said.put(f"searching: {details['query']}")
        elif kind == "read":
            self._said.put(f"reading {len(details['hits'])} passages")

    def _piece(self, kind: str, piece: str) -> None:
        self._written += piece
        words, verdict, _ = self._written.partition("{")
        self._said.put("checking it against the passages" if verdict else words)


class Panel:
    """The conversation as a widget: ask, watch the steps and the words come, stop, open the sources, clear.

    `view` is the widget; a `Panel` at the end of a cell shows itself. The answer is made in a thread,
    so the notebook stays free. Everything that a model or a document wrote is shown as text.
    """

    def __init__(self, assistant: Assistant):
        import ipywidgets

        self.assistant, self.talk, self.answer, self._worker = assistant, Conversation(assistant), None, None
        wide = ipywidgets.Layout(width="100%")
        self.conversation, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.question = ipywidgets.Text(placeholder="Ask the documents", layout=wide)
        self.ask_button = ipywidgets.Button(description="Ask", button_style="primary")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True)
        self.clear_button = ipywidgets.Button(description="Clear")
        self.question.on_msg(lambda _, content, __: content.get("event") == "submit" and self._submit())
        self.ask_button.on_click(lambda _: self._submit())
        self.stop_button.on_click(lambda _: self.talk.stop())
        self.clear_button.on_click(lambda _: self.clear())
        self.show = ipywidgets.Dropdown(options=SHOWN, description="Show")
        buttons = ipywidgets.HBox([self.ask_button, self.stop_button, self.clear_button, self.show])
        self.view = ipywidgets.VBox([self.conversation, self.status, self.question, buttons], layout=wide)

    def _ipython_display_(self):
        from IPython.display import display

        display(self.view)

    def ask(self, question: str) -> None:
        """Ask as if it were typed, after what is being answered, and wait for the answer."""
        self._wait()
        self._submit(question)
        self._wait()

    def clear(self) -> None:
        """Forget the conversation, unless an answer is being made."""
        if not self.ask_button.disabled:
            self.assistant.clear()
            self.conversation.value = self.status.value = ""

    def _wait(self) -> None:
        if self._worker:
            self._worker.join()

    def _submit(self, question: str = "") -> None:
        question = question or self.question.value.strip()
        if not question or self.ask_button.disabled:
            return
        self._busy(True)
        self.answer, self.question.value = None, ""
        self.conversation.value += f"<p><b>{html.escape(question)}</b></p>"
        self._worker = threading.Thread(target=self._follow, args=(question,), daemon=True)
        self._worker.start()

    def _follow(self, question: str) -> None:
        for said in self.talk.ask(question):
            if isinstance(said, str):
                self.status.value = f"<i>… {html.escape(said)}</i>"
            elif isinstance(said, Answer):
                self.answer = said
        self.conversation.value += f"<p>{html.escape(outcome(said))}</p>{details(said, self.show.value)}"
        self.status.value = ""
        self._busy(False)

    def _busy(self, busy: bool) -> None:
        self.ask_button.disabled, self.stop_button.disabled = busy, not busy


def outcome(said: Answer | Exception) -> str:
    """What stands at the end of a question: the answer, or what became of it."""
    if isinstance(said, Answer):
        return said.answer
    return "Stopped." if isinstance(said, Cancelled) else str(said)


def details(said: Answer | Exception, show: str = "answer") -> str:
    """Sources and steps of an answer and its cost, as HTML; "" for an error. All text is escaped.

    They are folded, unless `show` is "sources", or "context", which adds the passages that were read.
    """
    if not isinstance(said, Answer):
        return ""
    text = _paragraphs(format_sources(said), format_steps(said), format_context(said) if show == "context" else "")
    shown = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
    unfolded = "" if show == "answer" else " open"
    fold = f"<details{unfolded}><summary>sources and steps</summary>{shown}</details>" if text else ""
    return f"{fold}<p><small>{html.escape(format_cost(said))}</small></p>"


def _beside(answer: Answer, show: str) -> str:
    """What comes with an answer in the terminal."""
    parts = [format_sources, format_context][: SHOWN.index(show)]
    return _paragraphs(*(part(answer) for part in parts))


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def format_answer(answer: Answer) -> str:
    """The answer with its sources, steps and cost, for a terminal."""
    return _paragraphs(answer.answer, format_sources(answer), format_steps(answer), format_cost(answer))


def format_sources(answer: Answer) -> str:
    """A line for each source, with its quote; says so where a quote was dropped."""
    lines = [f"  {cite(s['source'], s['page'])}" + (f": “{s['quote']}”" if s["quote"] else "") for s in answer.sources]
    dropped = sum(step["verdict"]["dropped"] for step in answer.steps if step["verdict"])
    if dropped:
        lines.append(f"  ({dropped} quotation{'s' * (dropped > 1)} not found word for word, and dropped)")
    return "\n".join(["Sources", *lines]) if lines else ""


def format_context(answer: Answer) -> str:
    """The passages that were read, each once, under their sources."""
    read = {hit["id"]: hit for step in answer.steps for hit in step["read"]}
    parts = [
        f"  {cite(hit['source'], hit['page'])}\n    " + hit["text"].replace("\n", "\n    ") for hit in read.values()
    ]
    return "\n\n".join(["Passages", *parts]) if parts else ""


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
