"""The conversation as a web page, over assistants that are handed in: one for each visitor.

It is served on this machine alone and fetches nothing from elsewhere. What models, documents and
visitors write is shown as text, never as HTML or Markdown, so no image or link in it is followed.
One question is answered at a time; the others wait in a queue.

Not known here: who a visitor is. A memory lasts as long as the page is open.
"""

import html
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kit.agent import LONGEST_QUESTION, Answer, Assistant
from kit.chat import SHOWN, Conversation, details, outcome
from kit.config import KitError
from kit.llm import Cancelled

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"


class Visit:
    """One open page: its conversation, and the question that waits for its turn."""

    def __init__(self, assistant: Assistant):
        self.talk = Conversation(assistant)
        self.busy, self.waiting = False, ""

    def take(self, question: str) -> bool:
        """Put a question in the queue; False where it is empty, or another one is not answered yet."""
        if self.busy or not question.strip():
            return False
        self.busy, self.waiting = True, question
        return True

    def answer(self) -> Iterator[str | Answer | Exception]:
        """What `Conversation.ask` yields for the question that was taken; nothing without one."""
        question, self.waiting = self.waiting, ""
        try:
            if question:
                yield from self.talk.ask(question)
            elif self.busy:
                yield Cancelled()
        finally:
            self.busy = False

    def stop(self) -> None:
        """End the answer that is being made, or give up the place in the queue."""
        self.waiting = ""
        self.talk.stop()


def page(new_assistant: Callable[[], Assistant], examples: Sequence[str] = (), note: str = "") -> "gradio.Blocks":
    """The page as Gradio's Blocks (https://www.gradio.app/docs/gradio/blocks), to be handed to `serve`.

    `new_assistant` makes an assistant with models of its own, so that stopping one visitor's answer
    stops no other's. `examples` are questions to click, `note` says what runs.
    """
    import gradio as gr

    visits: dict[str, Visit] = {}

    def visit(request: gr.Request) -> Visit:
        if request.session_hash not in visits:
            visits[request.session_hash] = Visit(new_assistant())
        return visits[request.session_hash]

    def take(question: str, shown: list, request: gr.Request):
        if not visit(request).take(question):  # what is shown may have changed since the key was pressed
            return gr.skip(), gr.skip(), *_buttons(gr, busy=visit(request).busy)
        return "", [*shown, _message("user", question)], *_buttons(gr, busy=True)

    def answer(shown: list, show: str, request: gr.Request) -> Iterator[tuple]:
        for said in visit(request).answer():
            if isinstance(said, str):
                yield [*shown, _message("assistant", f"… {said}")], ""
            else:
                yield [*shown, _message("assistant", outcome(said))], details(said, show)

    def stop(request: gr.Request):
        visit(request).stop()

    def clear(request: gr.Request):
        if visit(request).busy:  # the agent still writes into its memory
            return gr.skip()
        visit(request).talk.assistant.clear()
        return [], ""

    def leave(request: gr.Request):
        if left := visits.pop(request.session_hash, None):
            left.stop()

    hidden = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title="Agentic RAG kit", analytics_enabled=False) as blocks:
        conversation = gr.Chatbot(label="Ask the documents", render_markdown=False, buttons=[], feedback_options=None)
        below = gr.HTML()
        question = gr.Textbox(show_label=False, placeholder="Your question", lines=1)
        show = gr.Radio(list(SHOWN), value=SHOWN[0], label="Show", container=False)
        with gr.Row():
            buttons = gr.Button("Ask", variant="primary"), gr.Button("Stop", interactive=False), gr.Button("Clear")
        ask, halt, forget = buttons
        if examples:
            gr.Examples([[example] for example in examples], question, api_visibility="private")
        gr.on(
            [question.submit, ask.click], take, [question, conversation], [question, conversation, *buttons], **hidden
        ).then(answer, [conversation, show], [conversation, below], **hidden).then(
            lambda: _buttons(gr, busy=False), outputs=list(buttons), **hidden
        )
        halt.click(stop, queue=False, **hidden)
        gr.on([forget.click, conversation.clear], clear, outputs=[conversation, below], **hidden)
        if note:
            gr.HTML(f"<small>{html.escape(note)}</small>")
        blocks.unload(leave)
    return blocks


def serve(blocks: "gradio.Blocks", port: int | None = None) -> str:
    """Serve the page on 127.0.0.1 from a thread, until `blocks.close()`, and return its address.

    The first free port from 7860 on is taken where `port` is None. Raises `KitError` where it is not free.
    """
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts from elsewhere
    try:
        _, url, _ = blocks.queue(default_concurrency_limit=1).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            footer_links=[],
            ssr_mode=False,
            theme=theme,
            # A web site whose name is made to mean 127.0.0.1 (DNS rebinding) is not to read the documents.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        )
    except (OSError, OverflowError) as error:
        raise KitError(f"The page cannot be served on port {port} ({error}); give another --port.") from error
    return url


def _buttons(gr, busy: bool) -> tuple:
    return gr.Button(interactive=not busy), gr.Button(interactive=busy), gr.Button(interactive=not busy)


def _message(role: str, text: str) -> dict:
    """A message for the Chatbot, which takes HTML also where it renders no Markdown."""
    text = text if len(text) <= LONGEST_QUESTION else text[:LONGEST_QUESTION] + "…"
    return {"role": role, "content": html.escape(text)}
