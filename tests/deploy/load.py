"""Run in the container: four clients ask without a pause until the input ends; prints what they got."""

import http.client
import sys
import threading
from collections import Counter

over = threading.Event()
answers: Counter[str] = Counter()


def ask() -> None:
    while not over.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=30)
        try:
            connection.request("POST", "/healthz")  # which takes no POST
            answers[str(connection.getresponse().status)] += 1
        except (OSError, http.client.HTTPException) as error:
            answers[type(error).__name__] += 1
        finally:
            connection.close()


clients = [threading.Thread(target=ask) for _ in range(4)]
for client in clients:
    client.start()
sys.stdin.read()
over.set()
for client in clients:
    client.join()
print(dict(answers))
