"""The primary agent and its one tool: the fast model talks, the slow one reads.

The primary model decides whether a message needs the documents. If it does, it calls
`rag_with_reasoner`. A sufficient verdict ends the run with the reasoner's own words, so there is no
further call that could change them. An insufficient one returns a better query, with which the
primary model tries again; a stand-in's only if it leads to passages that were not read. When no try
finds the answer, the agent says so, whatever the primary model would rather say.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from smolagents import AgentError, AgentToolExecutionError, LogLevel, Tool, ToolCallingAgent
from smolagents.agents import EMPTY_PROMPT_TEMPLATES, ToolOutput
from smolagents.memory import ActionStep, TaskStep, ToolCall
from smolagents.models import ChatMessage, MessageRole
from smolagents.monitoring import Timing

from kit.config import KitError, Profile
from kit.evidence import Citation, find_quote
from kit.llm import Cancelled, ChatModel, Usage
from kit.reasoner import NOT_FOUND, SURE_ALONE, Reasoner, Verdict, chooses, plain_answer
from kit.retriever import Hit, Retriever, whole

MODES = ("closed", "rag", "reasoner", "agentic")
LONGEST_QUESTION = 4000  # characters
FAR = 0.25  # cosine similarity below which a passage speaks of something else (see benchmarks/README.md)
OnEvent = Callable[[str, dict], None]  # called with the kind of event and its details

# smolagents' own system prompt has about 900 tokens with these tools; this one stays far below 400.
SYSTEM = """\
You are the front desk of a document collection. You do not know what the documents say; \
only the tool rag_with_reasoner does. Reply with one tool call as JSON.

Tools:
- final_answer, input {"answer": ...}: talks to the user. Use it for greetings and thanks, and for questions about \
this conversation, such as what the user said or asked before: read that above.
- rag_with_reasoner, input {"question": ...}: searches the documents and answers. Use it for every other question: \
facts, people, numbers, dates, rules, the world, also if you believe you know the answer. The question must be \
complete in itself: put in the names that "it" or "she" stand for. Otherwise keep the user's words.

If rag_with_reasoner says that the answer was not found and names a better query, call it again with that query."""

# Behind a message of a conversation. In the system prompt the same wish changes nothing for a small model.
ALONE = "If it is for the documents, write it as a question that can be understood without what was said before."


@dataclass(frozen=True)
class Answer:
    """What a question brought. `sources` and `steps` are plain dicts, as `kit ask --json` prints them."""

    answer: str
    answered: bool
    sources: list[dict]
    steps: list[dict]
    state: str  # answered · not_found · conversation · max_steps
    usage: dict
    seconds: float


class RagTool(Tool):
    """The tool `rag_with_reasoner`, over the retriever and the reasoner that it is given.

    Within one run it remembers which passages were read, so that none is read twice, and the quotes
    found so far (`notes`), which go to the reasoner beside the new passages.
    """

    name = "rag_with_reasoner"
    description = "Searches the documents and answers a question from them."
    inputs = {"question": {"type": "string", "description": "a complete question, or search words"}}  # noqa: RUF012
    output_type = "string"

    def __init__(self, retriever: Retriever, reasoner: Reasoner, k: int, on_event: OnEvent | None = None):
        super().__init__()
        self.retriever, self.reasoner, self.k = retriever, reasoner, k
        self.on_event = on_event or (lambda kind, details: None)
        self.begin()

    def begin(self, question: str = "") -> None:
        """Start a run. `question` is what the reasoner answers; if empty, the first call's own words."""
        self.question = question
        self.called = False  # whether the model has turned to the documents in this run
        self.verdict: Verdict | None = None
        self.notes: tuple[Citation, ...] = ()
        self.steps: list[dict] = []
        self._read: set[str] = set()

    @property
    def given(self) -> tuple[str, ...]:
        """The inputs of the next call that are settled: of the first one the question, as it was asked."""
        return ("question",) if self.question and not self.steps else ()

    @property
    def over(self) -> bool:
        """Whether no further call can help: there is an answer, or a stand-in has no words that lead on."""
        verdict = self.verdict
        return bool(verdict) and (verdict.sufficient or (self.reasoner.stand_in and not verdict.better_query))

    def forward(self, question: str) -> str:
        """Search with `question`, let the reasoner read what is new, and say what it found."""
        question = question.replace(ALONE, "").strip()  # which a small model may copy
        if not question:
            return "The question is empty; write it out."
        self.question = self.question or question
        self.on_event("search", {"query": question})
        started = time.perf_counter()
        verdict, hits = self._read_on(*self._judge(*self._find(question)))
        self.verdict = verdict if self._leads_on(verdict.better_query) else replace(verdict, better_query="")
        self.notes = tuple(dict.fromkeys([*self.notes, *verdict.citations]))
        self.steps.append(_step(question, hits, self.verdict, time.perf_counter() - started))
        self.on_event("verdict", self.steps[-1])
        return _observed(asdict(self.verdict))

    def _find(self, question: str) -> tuple[list[Hit], list[Hit]]:
        """What to read first for `question`, and all passages for it, these among them; none that this run has read."""
        if not hasattr(self.retriever, "follow"):  # a retriever of one's own need only search
            return [], self._unread(self.retriever.search(question, self.k))
        first, hits = self.retriever.follow(question, self.k)
        hits = self._unread(hits)
        return [hit for hit in hits if hit in first] if self.reasoner.stand_in else [], hits

    def _judge(self, first: list[Hit], hits: list[Hit]) -> tuple[Verdict, list[Hit]]:
        """The verdict on `first` where that is enough, else on `hits`; and what it read.

        A small model takes an answer from whatever resembles the question. With a document or two before it, there is
        less. So it is asked once more whether there is an answer, over these, or over the documents that it cites;
        where it only chooses between things that the question names, over all, for it cites but the one.
        """
        self.on_event("read", {"hits": first or hits})
        if not hits:
            return Verdict(thinking="Every passage that this search finds was read before."), hits
        known = [hit.similarity for hit in hits if hit.similarity is not None]
        if known and max(known) < FAR:
            self._read.difference_update(hit.id for hit in hits)
            return Verdict(thinking="No passage has anything to do with it."), hits  # so nobody need read them
        if first:
            verdict = self._verdict(first, more=True)
            if self._sure(verdict, first, more=True).sufficient:
                return verdict, first
            self.on_event("read", {"hits": [hit for hit in hits if hit not in first]})
        verdict = self._verdict(hits)
        if chooses(verdict.answer, self.question):
            return self._sure(verdict, hits), hits
        return self._sure(verdict, self._cited(verdict, hits), sure=SURE_ALONE), hits

    def _verdict(self, hits: list[Hit], more: bool = False) -> Verdict:
        read = (self.question, hits, self.notes)
        return self.reasoner.glance(*read, more) or self.reasoner.judge(*read)

    def _sure(self, verdict: Verdict, hits: list[Hit], **how) -> Verdict:
        """`verdict`, or, where it has an answer that the reasoner takes `hits` not to hold, one without."""
        if not (verdict.sufficient and hits):  # none where only notes of an earlier search are cited
            return verdict
        return self.reasoner.doubt(self.question, hits, self.notes, **how) or verdict

    def _cited(self, verdict: Verdict, hits: list[Hit]) -> list[Hit]:
        """What was read of the documents that `verdict` cites, its quotes first, a third of `k` of each at most."""
        cited = []
        for source in dict.fromkeys(citation.source for citation in verdict.citations):
            quotes = [citation.quote for citation in verdict.citations if citation.source == source]
            own = [hit for hit in hits if hit.source == source]
            own.sort(key=lambda hit: not any(find_quote(hit.text, quote) for quote in quotes))
            cited += own[: max(1, self.k // 3)]
        return cited

    def _read_on(self, verdict: Verdict, hits: list[Hit]) -> tuple[Verdict, list[Hit]]:
        """The verdict after reading about what its answer names, as long as that leads on; and all that was read."""
        about = getattr(self.retriever, "about", None) if self.reasoner.stand_in else None
        given = {verdict.answer}
        while about and verdict.sufficient and (found := about(verdict.answer, self.question, max(1, self.k // 3))):
            self.on_event("read", {"hits": found})
            hits = [*hits, *self._unread(found)]
            further = self.reasoner.further(self.question, verdict, found)
            if further.answer in given:
                break
            verdict = further
            given.add(verdict.answer)
        return verdict, hits

    def _leads_on(self, query: str) -> bool:
        """Whether `query` is worth a search: of the third of `k` that it finds first, this run has not read all.

        A stand-in's other words are mostly those of the question, and find what it found (see benchmarks/README.md).
        """
        if not (query and self.reasoner.stand_in):
            return bool(query)
        return any(hit.id not in self._read for hit in self.retriever.search(query, max(1, self.k // 3)))

    def _unread(self, hits: list[Hit]) -> list[Hit]:
        """Those of `hits` that this run has not read before; from now on it has."""
        new = [hit for hit in hits if hit.id not in self._read]
        self._read.update(hit.id for hit in new)
        return new


class RagAgent(ToolCallingAgent):
    """A `ToolCallingAgent` whose answer rests on what the tool returned, never on the model's memory."""

    def __init__(self, tool: RagTool, model: ChatModel, max_steps: int):
        super().__init__(
            tools=[tool],  # smolagents adds `final_answer`, which with us only serves talk that needs no document
            model=model,
            prompt_templates=EMPTY_PROMPT_TEMPLATES | {"system_prompt": SYSTEM},
            max_steps=max_steps,
            max_tool_threads=1,
            verbosity_level=LogLevel.OFF,
            return_full_result=True,
        )
        self.tool = tool

    def process_tool_calls(self, chat_message, memory_step) -> Iterator:
        """A sufficient verdict is the final answer, without a further call; else `final_answer` cannot invent one.

        Once the model has turned to the documents nothing else counts, also where its call went wrong.

        The first search is for the question as it was asked: a small model that should pass it on often loses half.
        So it need not write it down again.
        """
        for call in chat_message.tool_calls:
            self.tool.called |= call.function.name == self.tool.name
            if call.function.name == self.tool.name and self.tool.given:
                call.function.arguments = {"question": self.tool.question}
            elif call.function.name == "final_answer" and self.tool.called:
                call.function.arguments = {"answer": NOT_FOUND}  # or a follow-up would find the invention in its memory
        for output in super().process_tool_calls(chat_message, memory_step):
            if isinstance(output, ToolOutput) and self.tool.verdict and (output.is_final_answer or self.tool.over):
                said = output.output if self.tool.verdict.sufficient else NOT_FOUND
                output = replace(output, output=said, is_final_answer=True)
            yield output

    def execute_tool_call(self, tool_name: str, arguments):
        """As in smolagents, but a fault of engine or index ends the run: the model cannot mend it."""
        try:
            return super().execute_tool_call(tool_name, arguments)
        except AgentToolExecutionError as error:
            raise error.__cause__ or error from None

    def provide_final_answer(self, task: str) -> ChatMessage:
        """After the last step: no further model call, which would answer from memory."""
        return ChatMessage(role=MessageRole.ASSISTANT, content=NOT_FOUND)


class Assistant:
    """The four ways to answer, over one retriever and two models.

    `closed` asks the primary model alone; `rag` gives it the first k passages; `reasoner` gives them
    to the reasoner; `agentic` lets the primary model call the reasoner as a tool and try again.
    `on_event` is called as things happen, `cancel` stops a running answer from another thread.
    `retriever` may be None where only `closed` is asked for.
    """

    def __init__(
        self,
        profile: Profile,
        primary: ChatModel,
        reasoner_model: ChatModel,
        retriever: Retriever | None,
        on_event=None,
    ):
        self.profile, self.primary, self.retriever = profile, primary, retriever
        self.reasoner = Reasoner(reasoner_model, profile.thinking_tokens, profile.answer_tokens, profile.stand_in)
        self.tool = RagTool(retriever, self.reasoner, profile.k, on_event)
        self.agent = RagAgent(self.tool, primary, profile.max_steps)
        self._answering = threading.Lock()

    def ask(
        self,
        question: str,
        mode: str = "agentic",
        k: int = 0,
        max_steps: int = 0,
        follow_up: bool = False,
        hits: Sequence[Hit] | None = None,
    ) -> Answer:
        """Answer `question`; `follow_up` keeps the conversation so far (agentic mode only).

        `hits` are passages to answer from instead of searching (mode `rag` only).

        One question is answered at a time: another thread's waits. Raises `KitError` for an empty or overlong
        question, an unknown mode and whatever goes wrong, `Cancelled` after `cancel`.
        """
        question = whole(question).strip()
        if not question:
            raise KitError('The question is empty; write one, for example `kit ask "Who signed the lease?"`.')
        if len(question) > LONGEST_QUESTION:
            raise KitError(
                f"The question has {len(question)} characters; ask one of at most {LONGEST_QUESTION}, "
                "and put long text into a file for `kit ingest`."
            )
        if mode not in MODES:
            raise KitError(f"There is no mode {mode!r}; choose one of {', '.join(MODES)}.")
        with self._alone():
            started, used, searched = time.perf_counter(), self._used(), self._searched()
            self.tool.k = k or self.profile.k
            self.tool.begin(question)
            fields = getattr(self, f"_{mode}")(question, max_steps=max_steps, follow_up=follow_up, hits=hits)
            usage = self._used() - used
        return Answer(
            **fields,
            usage={
                "calls": usage.calls,
                "prompt_tokens": usage.prompt_tokens,
                "output_tokens": usage.output_tokens,
                "load_seconds": round(usage.load_seconds, 3),
                "engine_seconds": round(usage.engine_seconds, 3),
                "search_seconds": round(self._searched() - searched, 3),
            },
            seconds=round(time.perf_counter() - started, 3),
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One answer at a time, for all write into one tool; and no fault of a library that is not a `KitError`."""
        with self._answering:
            for model in self._models():  # a stop that came too late for the last answer
                model.cancelled.clear()
            try:
                yield
            except KitError:
                raise
            except Exception as error:
                if any(model.cancelled.is_set() for model in self._models()):
                    raise Cancelled from error
                fault = f"{type(error).__name__}: {error}"
                raise KitError(f"The answer failed ({fault}); run `kit doctor`, or ask again with --debug.") from error
            finally:
                for model in self._models():
                    model.cancelled.clear()

    def answer(self, question: dict, mode: str) -> dict:
        """The answer to a row of a question file as a dict, for `kit.evaluation.run`.

        Beside the modes of `ask` there is `gold`: plain answering over the row's own `sources`.
        """
        if mode == "gold":
            return asdict(self.ask(question["question"], "rag", hits=self.retriever.passages(question["sources"])))
        return asdict(self.ask(question["question"], mode))

    def cancel(self) -> None:
        """Stop the running answer, if there is one: no further step, and the engine stops writing."""
        if not self._answering.locked():
            return  # else what the models are asked next would be stopped
        self.agent.interrupt()
        for model in self._models():
            model.cancelled.set()
            model.cancel()

    def clear(self) -> None:
        """Forget the conversation."""
        self.agent.memory.reset()

    def remember(self, question: str, answer: dict) -> None:
        """Take an earlier turn into the conversation: a question, and its `Answer` as a dict.

        The agent's memory is then what it was after that answer, less a `final_answer` that gave up.
        """
        calls = [
            ("rag_with_reasoner", {"question": step["query"]}, _observed(step["verdict"]))
            for step in answer["steps"]
            if step["verdict"]  # plain RAG has none
        ]
        calls = calls or [("final_answer", {"answer": answer["answer"]}, answer["answer"])]
        self.agent.memory.steps.append(TaskStep(question))
        for number, (name, arguments, observed) in enumerate(calls, 1):
            call = ToolCall(name, arguments, id="")
            self.agent.memory.steps.append(
                ActionStep(number, Timing(0.0, 0.0), tool_calls=[call], observations=observed)
            )

    def _models(self) -> tuple[ChatModel, ChatModel]:
        return self.primary, self.reasoner.model

    def _used(self) -> Usage:
        return self.primary.usage + self.reasoner.model.usage

    def _searched(self) -> float:
        return self.retriever.seconds if self.retriever else 0.0

    def _closed(self, question: str, **_) -> dict:
        ask = (
            f"{question}\n\nAnswer with the answer alone, as short as possible. If you do not know, say: I do not know."
        )
        answer = self.primary.complete([{"role": "user", "content": ask}]).text.strip()
        return _outcome(answer, bool(answer) and not re.search(r"do(?:n['’]t| not) know", answer, re.IGNORECASE))

    def _rag(self, question: str, hits: Sequence[Hit] | None, **_) -> dict:
        hits = self.retriever.search(question, self.tool.k) if hits is None else hits
        answer = plain_answer(self.primary, question, hits, self.profile.answer_tokens)
        sources = [{"source": h.source, "page": h.page, "quote": ""} for h in hits]
        return _outcome(answer or NOT_FOUND, bool(answer), sources if answer else [], [_step(question, hits)])

    def _reasoner(self, question: str, **_) -> dict:
        self.tool.forward(question)
        return self._from_tool("not_found")

    def _agentic(self, question: str, max_steps: int, follow_up: bool, **_) -> dict:
        said = question
        if follow_up and self.agent.memory.steps:
            self.tool.begin()  # the agent's own wording, which stands alone
            said = f"{question}\n\n{ALONE}"
        before = len(self.agent.memory.steps) if follow_up else 0
        try:
            result = self.agent.run(said, reset=not follow_up, max_steps=max_steps or self.profile.max_steps)
        except BaseException as error:
            del self.agent.memory.steps[before:]  # a question without an answer is no part of the conversation
            raise _fault(error) from None
        finally:
            for step in self.agent.memory.steps:
                if isinstance(step, TaskStep) and step.task == said:
                    step.task = question  # later turns read what the user said, and nothing more
        out_of_steps = result.state == "max_steps_error"
        if out_of_steps:
            self.agent.memory.steps.pop()  # smolagents' wish to try again is no part of the conversation
        otherwise = "max_steps" if out_of_steps else "not_found"
        if self.tool.verdict:
            return self._from_tool(otherwise)
        if out_of_steps or self.tool.called:
            return _outcome(str(result.output), False, state=otherwise)
        return _outcome(str(result.output), state="conversation")

    def _from_tool(self, otherwise: str) -> dict:
        verdict = self.tool.verdict
        if not verdict.sufficient:
            return _outcome(NOT_FOUND, False, steps=self.tool.steps, state=otherwise)
        cited = [{"source": c.source, "page": c.page, "quote": c.quote} for c in self.tool.notes]
        return _outcome(verdict.answer, True, cited, self.tool.steps)


def _observed(verdict: dict) -> str:
    """What the primary model is told of a verdict."""
    if verdict["sufficient"]:
        return verdict["answer"]
    hint = f" A better query: {verdict['better_query']}" if verdict["better_query"] else ""
    return f"Not found in the passages read.{hint}"


def _fault(error: BaseException) -> BaseException:
    """What smolagents wrapped: our own sentence where there is one."""
    wrapped = isinstance(error, AgentError) and isinstance(error.__cause__, KitError)
    return error.__cause__ if wrapped else error


def _outcome(answer: str, answered: bool = True, sources=(), steps=(), state: str = "") -> dict:
    state = state or ("answered" if answered else "not_found")
    return {"answer": answer, "answered": answered, "sources": list(sources), "steps": list(steps), "state": state}


def _step(query: str, hits: list[Hit], verdict: Verdict | None = None, seconds: float = 0.0) -> dict:
    read = [{"id": h.id, "source": h.source, "page": h.page, "score": round(h.score, 4), "text": h.text} for h in hits]
    return {"query": query, "read": read, "verdict": verdict and asdict(verdict), "seconds": round(seconds, 3)}
