"""The flow that the kit is measured against: a well-known two-agent example, rebuilt from its description.

smolagents' stock `ToolCallingAgent` holds the conversation (at most 3 steps). Its one tool searches
for the 3 nearest chunks of 1,000 characters (200 shared) and hands them to a stock `CodeAgent` (at
most 2 steps, `reset=False`), which answers or says what to search for instead. Both reach Ollama by
`/v1`, with no limit on the tokens of a reply. Engine, weights, window and embeddings are the kit's.

Three kindnesses. So that a run ends, every question starts with new agents, and none leaks into the
next; and a call that takes longer than `call_seconds` of the profile fails. And its search is the
kit's, by words as well as by meaning, over chunks beneath their titles.
"""

import time
from pathlib import Path

from smolagents import AgentError, CodeAgent, LogLevel, OpenAIModel, ToolCallingAgent, tool

from kit.config import KitError, Profile
from kit.index import Embedder, Index
from kit.retriever import Retriever

CHUNK_SIZE, CHUNK_OVERLAP, K = 1000, 200, 3
PROMPT = """Answer the question from the context below, briefly and to the point. If the context is not enough \
to answer it, reply instead with a better query for searching the documents.

Context:
{context}

Question: {question}

Answer:"""


class CountedModel(OpenAIModel):
    """smolagents' own client, with its calls, tokens and seconds counted."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = self.prompt_tokens = self.output_tokens = 0
        self.waited = 0.0

    def generate(self, *args, **kwargs):
        started = time.perf_counter()
        try:
            message = super().generate(*args, **kwargs)
        finally:
            self.calls += 1
            self.waited += time.perf_counter() - started
        self.prompt_tokens += message.token_usage.input_tokens
        self.output_tokens += message.token_usage.output_tokens
        return message


class Original:
    """Answers a question as the example does, over its own index of the documents at `paths`, kept in `folder`."""

    def __init__(self, profile: Profile, url: str, paths: list[str], folder: Path):
        self.profile, self.url = profile, url
        embedder = Embedder(profile.embedding_path)
        with Index.create(folder, embedder, CHUNK_SIZE, CHUNK_OVERLAP) as index:
            index.ingest(paths)
        self.retriever = Retriever(Index.open(folder, embedder))

    def ask(self, question: str) -> dict:
        """What `kit ask --json` prints, as far as the flow has it: it cites nothing and never says that it declines.

        Raises `KitError` where an agent fails.
        """
        primary_model, reasoner_model = (self._model(role) for role in ("primary", "reasoner"))
        reasoner = CodeAgent(
            tools=[], model=reasoner_model, add_base_tools=False, max_steps=2, verbosity_level=LogLevel.OFF
        )

        @tool
        def rag_with_reasoner(user_query: str) -> str:
            """Searches the documents and answers the question from what it finds.

            Args:
                user_query: the question to answer from the documents
            """
            hits = self.retriever.search(user_query, K)
            context = "\n\n".join(hit.text for hit in hits)
            return str(reasoner.run(PROMPT.format(context=context, question=user_query), reset=False))

        primary = ToolCallingAgent(
            tools=[rag_with_reasoner],
            model=primary_model,
            add_base_tools=False,
            max_steps=3,
            verbosity_level=LogLevel.OFF,
        )
        started, searched = time.perf_counter(), self.retriever.seconds
        try:
            answer = str(primary.run(question))
        except AgentError as error:
            raise KitError(f"The original flow failed: {error}") from error
        models = (primary_model, reasoner_model)
        return {
            "answer": answer,
            "answered": bool(answer.strip()),
            "sources": [],
            "steps": [],
            "state": "answered",
            "usage": {
                "calls": sum(m.calls for m in models),
                "prompt_tokens": sum(m.prompt_tokens for m in models),
                "output_tokens": sum(m.output_tokens for m in models),
                "load_seconds": 0.0,
                "engine_seconds": round(sum(m.waited for m in models), 3),
                "search_seconds": round(self.retriever.seconds - searched, 3),
            },
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _model(self, role: str) -> CountedModel:
        return CountedModel(
            self.profile.model_name(role),
            api_base=f"{self.url}/v1",
            api_key="none",
            client_kwargs={"timeout": self.profile.call_seconds, "max_retries": 0},
        )
