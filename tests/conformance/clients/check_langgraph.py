"""LangGraph: an agent with a function, over chat completions and over responses."""

from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from server import KEY, NAMED, STEERING, V1, Forecast


@tool
def weather(town: Literal["Ur", "Bath"]) -> str:
    """The weather of a town."""
    return f"{town} is wet"


for responses in (False, True):
    options = {"base_url": V1, "api_key": KEY, "use_responses_api": responses, "max_tokens": 200}
    caller = ChatOpenAI(model=NAMED, **options).bind_tools([weather], tool_choice="weather", strict=True)
    talker = ChatOpenAI(model="demo", extra_body=STEERING, **{**options, "max_tokens": 12})
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state, model=caller: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([weather]))
    graph.add_node("say", lambda state, model=talker: {"messages": [model.invoke(state["messages"])]})
    for before, after in ((START, "ask"), ("ask", "tools"), ("tools", "say"), ("say", END)):
        graph.add_edge(before, after)
    kinds = [message.type for message in graph.compile().invoke({"messages": [("user", "Will it rain?")]})["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"], kinds
    assert "".join(chunk.text for chunk in talker.stream("And snow?")) is not None
    formed = ChatOpenAI(model="demo", **options).with_structured_output(Forecast)
    print(f"  responses {responses}: {formed.invoke('Will it rain?')}")
