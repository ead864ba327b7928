"""An executor that knows TCP and protocol buffers only, as the libraries for executors of Mesos do by default.

A task ends when it is killed. Its data is the data of its status, in reverse.
"""

import os
import sys
import uuid

import mesos

NAMES = {
    "executor_id": mesos.ExecutorID(value=os.environ["MESOS_EXECUTOR_ID"]),
    "framework_id": mesos.FrameworkID(value=os.environ["MESOS_FRAMEWORK_ID"]),
}
PATH = "/slave(1)/api/v1/executor"
# What libraries parse.
assert os.environ["MESOS_SLAVE_PID"] == "slave(1)@" + os.environ["MESOS_AGENT_ENDPOINT"]


def client():
    address, token = os.environ["MESOS_AGENT_ENDPOINT"], os.environ["MESOS_EXECUTOR_AUTHENTICATION_TOKEN"]
    return mesos.Client(address, token, PATH)


updates = client()


def call(kind, **fields):
    call = mesos.ExecutorCall(type=kind, **NAMES, **fields)
    status, text = updates.status(call.SerializeToString())
    assert (status, text) == (202, ""), (status, text)


def update(task, state, **fields):
    status = mesos.TaskStatus(task_id=task, state=state, source=mesos.SOURCE_EXECUTOR, uuid=uuid.uuid4().bytes, **fields)
    call(mesos.E_UPDATE, update=mesos.Update(status=status))


# Another executor's name, and no token.
other = {**NAMES, "executor_id": mesos.ExecutorID(value="other")}
body = mesos.ExecutorCall(type=mesos.E_SUBSCRIBE, **other).SerializeToString()
assert updates.status(body)[0] == 403
# The library of Mesos sends these without the names.
body = mesos.ExecutorCall(type=mesos.E_HEARTBEAT, executor_id=mesos.ExecutorID(value=""), framework_id=mesos.FrameworkID(value=""))
assert updates.status(body.SerializeToString()) == (202, "")
assert updates.status(body.SerializeToString(), Authorization="Bearer none")[0] == 401
# What is for operators is not for executors.
health = mesos.Call(type=mesos.GET_HEALTH).SerializeToString()
status, text = updates.status(health, path="/slave(1)/api/v1")
assert status == 403 and "an executor must not call `GET_HEALTH`" in text, (status, text)

subscribe = mesos.ExecutorCall(type=mesos.E_SUBSCRIBE, subscribe=mesos.Subscribe(), **NAMES)
stream = client().request(subscribe.SerializeToString())
assert (stream.status, stream.getheader("Content-Type")) == (200, mesos.PROTOBUF), stream.getheaders()
for record in mesos.records(stream):
    event = mesos.parse("Event", record)
    print(event.type, flush=True)
    if event.type == mesos.V_SUBSCRIBED:
        assert event.subscribed.executor_info.executor_id == NAMES["executor_id"], event
        assert event.subscribed.agent_info.hostname and event.subscribed.container_id.value, event
    elif event.type == mesos.V_LAUNCH:
        task = event.launch.task
        assert task.resources[0].scalar.value == 0.1, event
        update(task.task_id, mesos.TASK_RUNNING, data=task.data[::-1])
    elif event.type == mesos.V_KILL:
        update(event.kill.task_id, mesos.TASK_KILLED, message="as asked")
    elif event.type == mesos.V_MESSAGE:
        call(mesos.E_MESSAGE, message=mesos.CallMessage(data=event.message.data + b"!"))
    elif event.type == mesos.V_SHUTDOWN:
        sys.exit()
