# The main job with nats-py: name, replicas and server urls are the arguments.
import asyncio
import sys

import nats
from nats.errors import NoRespondersError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import BadRequestError, KeyWrongLastSequenceError, NotFoundError


async def core(first, last, name):
    async def answer(request):
        await request.respond(b"answer to " + request.data)

    await last.subscribe(f"{name}-service", cb=answer)
    await last.flush()
    for attempt in range(100):
        try:
            reply = await first.request(f"{name}-service", b"question", timeout=5)
            break
        except NoRespondersError:  # interest has not spread yet
            assert attempt < 99
            await asyncio.sleep(0.05)
    assert reply.data == b"answer to question", reply
    try:
        await first.request(f"{name}-nobody", b"question", timeout=5)
        raise AssertionError("nobody answered, and there was an answer")
    except NoRespondersError:
        pass


async def streams(first, last, name, replicas):
    js = first.jetstream()
    await js.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], num_replicas=replicas))
    for number in range(1, 21):
        ack = await js.publish(f"{name}.a", str(number).encode(), headers={"Nats-Msg-Id": f"id-{number}"})
        assert ack.seq == number and not ack.duplicate, ack
    ack = await js.publish(f"{name}.a", b"20", headers={"Nats-Msg-Id": "id-20"})
    assert ack.seq == 20 and ack.duplicate, ack
    try:
        await js.publish(f"{name}.a", b"x", headers={"Nats-Expected-Last-Sequence": "7"})
        raise AssertionError("a wrong expectation was acked")
    except BadRequestError as error:
        assert error.err_code == 10071, error

    # From another node than the one that published.
    js = last.jetstream()
    worker = await js.pull_subscribe(f"{name}.a", durable="worker", stream=name)
    taken = []
    while len(taken) < 20:
        for message in await fetch(worker, 20 - len(taken)):
            taken.append(message.data)
            await message.ack_sync()
    assert taken == [str(number).encode() for number in range(1, 21)], taken
    info = await js.consumer_info(name, "worker")
    assert (info.num_pending, info.num_ack_pending, info.ack_floor.stream_seq) == (0, 0, 20), info

    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=18, ack_policy=AckPolicy.NONE
    )
    replay = await js.pull_subscribe(f"{name}.a", stream=name, config=config)
    replayed = []
    while len(replayed) < 3:
        replayed += [message.data for message in await fetch(replay, 3 - len(replayed))]
    assert replayed == [b"18", b"19", b"20"], replayed

    ordered = await js.subscribe(f"{name}.>", stream=name, ordered_consumer=True)
    for number in range(1, 21):
        message = await ordered.next_msg(timeout=20)
        assert message.data == str(number).encode(), (number, message)
    await ordered.unsubscribe()
    await js.delete_stream(name)
    try:
        await js.stream_info(name)
        raise AssertionError("a deleted stream has info")
    except NotFoundError:
        pass


async def fetch(subscription, count):
    # A consumer that was just made may not have spread to every node of nats-server.
    for attempt in range(100):
        try:
            return await subscription.fetch(count, timeout=5)
        except (NoRespondersError, nats.js.errors.ServiceUnavailableError):
            assert attempt < 99
            await asyncio.sleep(0.05)


async def values(first, last, name, replicas):
    bucket = await first.jetstream().create_key_value(bucket=f"{name}-kv", history=3, replicas=replicas)
    far = await last.jetstream().key_value(f"{name}-kv")
    assert await bucket.put("color", b"red") == 1
    watcher = await far.watchall()
    entry = await watcher.updates(timeout=20)
    assert (entry.key, entry.value, entry.revision) == ("color", b"red", 1), entry
    assert await watcher.updates(timeout=20) is None
    assert await bucket.update("color", b"blue", last=1) == 2
    entry = await watcher.updates(timeout=20)
    assert (entry.value, entry.revision) == (b"blue", 2), entry
    try:
        await bucket.update("color", b"green", last=1)
        raise AssertionError("an update over a wrong revision was taken")
    except KeyWrongLastSequenceError:
        pass
    await watcher.stop()


async def main():
    name, replicas, urls = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    first = await nats.connect(urls[0])
    last = await nats.connect(urls[-1])
    await core(first, last, name)
    await streams(first, last, name, replicas)
    await values(first, last, name, replicas)
    await first.close()
    await last.close()
    print("done")


asyncio.run(main())
