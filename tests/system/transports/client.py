"""Calls of the operator API in protocol buffers: `client.py ADDRESS TOKEN`."""

import json
import sys

import mesos

ADDRESS, TOKEN = sys.argv[1:]


def one(name):
    return mesos.OneContainer(container_id=mesos.ContainerID(value=name))


def calls(client):
    assert client.call("GET_VERSION").version_info.version
    assert client.call("GET_HEALTH").healthy
    flags = {flag.name: flag.value for flag in client.call("GET_FLAGS").flags}
    assert flags["api.listen"] == ADDRESS, flags
    assert TOKEN not in repr(flags)
    assert any(metric.name == "slave/uptime_secs" for metric in client.call("GET_METRICS", get_metrics=mesos.GetMetricsCall()).metrics)

    launch = mesos.LaunchContainer(
        container_id=mesos.ContainerID(value="one"),
        command=mesos.CommandInfo(value="printf 'a\\0b'; exit 3"),
        resources=[mesos.Resource(name="cpus", type=mesos.SCALAR, scalar=mesos.Scalar(value=0.25))],
        limits=[mesos.Limits(key="cpus", value=mesos.Scalar(value=float("inf")))],
    )
    assert client.call("LAUNCH_CONTAINER", launch_container=launch) is None
    ended = client.call("WAIT_CONTAINER", wait_container=one("one"))
    assert ended.exit_status == 3 << 8, ended
    files = client.call("LIST_FILES", list_files=mesos.ListFiles(path="/containers/one"))
    assert [info.size for info in files.file_infos if info.path.endswith("/stdout")] == [3], files
    read = mesos.ReadFile(path="/containers/one/stdout", offset=0)
    assert client.call("READ_FILE", read_file=read) == mesos.FileData(size=3, data=b"a\0b")

    launch.container_id.value = "two"
    launch.command.value = "sleep 1000"
    client.call("LAUNCH_CONTAINER", launch_container=launch)
    wanted = mesos.GetContainers(show_standalone=True)
    found = {found.container_id.value: found for found in client.call("GET_CONTAINERS", get_containers=wanted).containers}
    assert sorted(found) == ["one", "two"], found
    assert found["two"].container_status.executor_pid > 1, found
    assert found["two"].resource_statistics.timestamp > 0, found
    client.call("KILL_CONTAINER", kill_container=one("two"))
    assert client.call("WAIT_CONTAINER", wait_container=one("two")).state == mesos.TASK_KILLED
    for name in found:
        client.call("REMOVE_CONTAINER", remove_container=one(name))
    assert not client.call("GET_CONTAINERS", get_containers=wanted).containers
    state = client.call("GET_STATE")
    assert not state.get_tasks.launched_tasks and not state.get_executors.executors
    agent = client.call("GET_AGENT").agent_info
    assert agent.hostname and agent.id.value and agent.resources[0].name == "cpus", agent
    for lists in "GET_OPERATIONS", "GET_RESOURCE_PROVIDERS":
        assert not client.call(lists).SerializeToString()


def refusals(client):
    wait = mesos.Call(type=mesos.WAIT_CONTAINER, wait_container=one("none")).SerializeToString()
    assert client.status(wait) == (404, "there is no container `none`")
    status, text = client.status(b"\x08\x17\x72\x02\x0a\x00")
    assert status == 400 and "`wait_container.container_id`: missing field `value`" in text, (status, text)
    status, text = client.status(b"\x08\x17\x72\x09")
    assert status == 400 and "ends within a field" in text, (status, text)
    assert client.status(wait, Content_Type="application/protobuf")[0] == 415
    assert client.status(wait, Accept="text/html")[0] == 406
    assert client.status(mesos.Call(type=mesos.MARK_RESOURCE_PROVIDER_GONE).SerializeToString())[0] == 501
    # JSON that asks for protocol buffers, and the other way round.
    health = b'{"type": "GET_HEALTH"}'
    response = client.request(health, Content_Type="application/json")
    assert mesos.parse("Response", response.read()).get_health.healthy
    response = client.request(mesos.Call(type=mesos.GET_HEALTH).SerializeToString(), Accept="application/json")
    assert json.load(response) == {"type": "GET_HEALTH", "get_health": {"healthy": True}}
    # An extension has no form in protocol buffers, and has no effect.
    launch = {"container_id": {"value": "never"}, "command": {"value": "true"}}
    body = json.dumps({"type": "RUN_CONTAINER", "run_container": launch})
    status, text = client.status(body, Content_Type="application/json")
    assert status == 406 and "`RUN_CONTAINER` is an extension" in text, (status, text)
    assert not client.call("GET_CONTAINERS", get_containers=mesos.GetContainers(show_standalone=True)).containers


def attached(client):
    """Input for a container, and its output, both as records of protocol buffers."""
    launch = {
        "container_id": {"value": "cat"}, "command": {"value": "cat; echo end >&2"},
        "attach": {"stdin": True, "output": True},
    }
    body = json.dumps({"type": "LAUNCH_CONTAINER", "launch_container": launch})
    assert client.status(body, Content_Type="application/json") == (200, "")

    output = mesos.Client(ADDRESS, TOKEN)
    call = mesos.Call(type=mesos.ATTACH_CONTAINER_OUTPUT, attach_container_output=one("cat"))
    streaming = {"Accept": "application/recordio", "Message_Accept": mesos.PROTOBUF}
    response = output.request(call.SerializeToString(), **streaming)
    assert response.status == 200, response.read()
    headers = response.getheader("Content-Type"), response.getheader("Message-Content-Type")
    assert headers == ("application/recordio", mesos.PROTOBUF), headers

    def inputs():
        first = mesos.AttachContainerInput(type=mesos.CONTAINER_ID, container_id=mesos.ContainerID(value="cat"))
        data = [mesos.ProcessIOData(type=mesos.STDIN, data=data) for data in (b"\0\xffhello\n", b"")]
        rest = [mesos.ProcessIO(type=mesos.DATA, data=data) for data in data]
        rest = [mesos.AttachContainerInput(type=mesos.PROCESS_IO, process_io=io) for io in rest]
        for call in [first, *rest]:
            call = mesos.Call(type=mesos.ATTACH_CONTAINER_INPUT, attach_container_input=call).SerializeToString()
            yield b"%d\n%s" % (len(call), call)

    streaming = {"Content_Type": "application/recordio", "Message_Content_Type": mesos.PROTOBUF}
    assert client.status(b"".join(inputs()), **streaming) == (200, "")

    found = {mesos.STDOUT: b"", mesos.STDERR: b""}
    for record in mesos.records(response):
        io = mesos.parse("ProcessIO", record)
        if io.type == mesos.DATA:
            found[io.data.type] += io.data.data
    assert found == {mesos.STDOUT: b"\0\xffhello\n", mesos.STDERR: b"end\n"}, found
    client.call("WAIT_CONTAINER", wait_container=one("cat"))
    client.call("REMOVE_CONTAINER", remove_container=one("cat"))


# Each on one connection, under several of its paths.
for path in ["/api/v1", "/slave(1)/api/v1"]:
    client = mesos.Client(ADDRESS, TOKEN, path)
    client.connection.connect()
    local = client.connection.sock.getsockname()
    calls(client)
    refusals(client)
    attached(client)
    assert client.connection.sock.getsockname() == local, "the connection was not kept"
