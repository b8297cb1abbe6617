"""
The table of OFA's tasks, and how to add one of your own (docs/tasks.md).

The rows live in `modeling_ofa/tasks_ofa.py`, one of the files that travel to the Hub with a checkpoint: its processor
needs them where this package is not installed.
"""

from ..tasks_ofa import TASKS, Task, get_task, register_task


__all__ = ["TASKS", "Task", "get_task", "register_task"]
