"""A user's own startup hooks and callback, beside the agent's."""

import litellm
from litellm.integrations.custom_logger import CustomLogger


def note(text):
    with open("own.log", "a") as file:
        file.write(text + "\n")


class Own(CustomLogger):
    """Takes out what is marked, as a user's own rule would, and writes down what it was asked."""

    async def async_filter_deployments(
        self, model, healthy_deployments, messages, request_kwargs=None, parent_otel_span=None
    ):
        note(f"filter {model}")
        return [d for d in healthy_deployments if not (d.get("model_info") or {}).get("shunned")]

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        note(f"success {kwargs['standard_logging_object']['model_group']}")


own = Own()


def go():
    """Leaves a trace."""
    with open("went", "w") as file:
        file.write("yes")


def register():
    """Adds the callback in code, before the agent's if it is named before it."""
    go()
    litellm.logging_callback_manager.add_litellm_callback(own)


def breaks():
    raise RuntimeError("the user's hook is broken")
