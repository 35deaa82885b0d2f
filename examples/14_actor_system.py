"""Thespian's ActorSystem for host code, on a node that runs: find, ask, tell, listen.

The actors and the tree are in ``plain_actors.py``.
"""

import tempfile
from pathlib import Path

from plain_actors import Add, Counter

from supervision import Node, NodeActorSystem
from supervision.errors import NotOffered


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runtime_dir = Path(folder) / "node"
        with Node.start("plain_actors:TREE", runtime_dir), NodeActorSystem(runtime_dir) as system:
            apples = system.find("apples")  # or createActor(Counter, globalName="apples")
            print("ask:", system.ask(apples, Add("first", 2), timeout=2))
            system.tell(apples, Add("second", 3))
            print("listen:", system.listen(timeout=2))

            print("broken:", system.ask(apples, Add("third", "two"), timeout=2))
            print("restarted:", system.ask(apples, Add("fourth", 1), timeout=2))

            with system.private() as inbox:  # an inbox of its own; so has every thread
                print("private:", inbox.ask(apples, Add("fifth", 1), timeout=2))

            try:
                system.createActor(Counter)
            except NotOffered as error:
                print(error)


if __name__ == "__main__":
    main()
