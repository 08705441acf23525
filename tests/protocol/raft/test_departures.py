"""Who leaves, and was needed for the certificate of its leaving: those who stay hold it first (tier a seed 602496)."""

from protocol import limits
from protocol.identifiers import Height
from protocol.raft.messages import AppendEntries, AppendReply, CertificateNotice, HeartbeatReply
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster


def led_by(leader: int, count: int) -> Cluster:
    cluster = Cluster(count)
    cluster.elect(leader)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    return cluster


def told(cluster: Cluster, n: int, height: int) -> list[AppendEntries | CertificateNotice]:
    """Return the messages by which a node could learn that the block at `height` is certified."""
    messages = [*cluster.sent(AppendEntries, target=n), *cluster.sent(CertificateNotice, target=n)]
    return [message for message in messages if message.certificate and message.certificate.height >= height]


def lose_power(cluster: Cluster, n: int, applied: Height) -> None:
    """Crash a node; what it has applied since, and the certificates that were written with it, are gone."""
    disk = cluster.disks[n]
    disk.applied, disk.frontier = applied, cluster.states[applied][1]
    disk.certificates = {at: one for at, one in disk.certificates.items() if at <= applied} | disk.kept
    cluster.crash(n)


def test_7_2_a_crash_of_who_stays_costs_it_no_certificate_of_a_change() -> None:
    cluster = led_by(2, 2)
    before = cluster.disks[2].applied
    height = cluster.change(2, n1="")
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[1].certified_height == height
    cluster.crash(1)  # switched off, for ever
    lose_power(cluster, 2, before)
    started = cluster.start(2)
    assert started.certified_height == height
    assert started.certificate is not None
    cluster.run_until(lambda: cluster.leaders == [2], 400)
    after = cluster.propose(2)
    cluster.run(2)
    assert cluster.rafts[2].certified_height >= after
    below = cluster.disks[2].certificate(Height(height - 1))  # who catches up needs it before
    assert below is not None
    assert below.height == height - 1


def without_certificate(cluster: Cluster, *targets: int) -> None:
    """Keep every certificate from these nodes."""
    cluster.filter = lambda source, target, message: (
        not (
            target in targets
            and isinstance(message, AppendEntries | CertificateNotice)
            and message.certificate
        )
    )


def everything(cluster: Cluster) -> None:
    cluster.filter = lambda source, target, message: True


def test_7_2_who_leaves_is_not_told_before_the_certificate_is_durable_with_who_stays() -> None:
    cluster = led_by(2, 2)
    cluster.filter = lambda source, target, message: not (isinstance(message, AppendReply) and message.vote)
    height = cluster.change(2, n1="")
    cluster.settle()
    cluster.frozen.add(2)
    everything(cluster)
    cluster.run(4 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[2].certified_height == height
    assert told(cluster, 1, height) == []
    assert cluster.rafts[1].certified_height < height
    cluster.thaw(2)
    cluster.settle()
    assert cluster.rafts[1].certified_height == height


def test_7_2_who_leaves_is_not_told_before_a_quorum_of_those_who_stay_holds_the_certificate() -> None:
    cluster = led_by(1, 4)
    without_certificate(cluster, 2, 3)
    height = cluster.change(1, n4="")
    cluster.run(limits.VOTE_NOTICE_TICKS - 1)
    assert cluster.rafts[1].certified_height == height
    assert cluster.rafts[1].configuration.certificate_quorum == 2
    assert told(cluster, 4, height) == []
    without_certificate(cluster, 3)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[4].certified_height == height


def test_7_2_a_leader_that_leaves_has_those_who_stay_take_the_certificate_first() -> None:
    cluster = led_by(1, 3)
    cluster.filter = lambda source, target, message: not isinstance(message, CertificateNotice)
    height = cluster.change(1, n1="")
    cluster.settle()
    assert cluster.role(1) is Role.LEADER
    assert cluster.rafts[1].certified_height < height
    assert len(cluster.sent(CertificateNotice, 1)) == 0
    # They make it themselves, of the votes that all signers show each other when none comes.
    cluster.run(2 * limits.VOTE_NOTICE_TICKS)
    assert {cluster.rafts[n].certified_height >= height for n in (1, 2, 3)} == {True}
    assert cluster.role(1) is Role.FOLLOWER


def test_7_2_what_a_leaving_leader_has_made_goes_to_those_who_stay_at_once() -> None:
    cluster = led_by(1, 4)
    height = cluster.change(1, n1="")
    cluster.settle()
    notices = cluster.sent(CertificateNotice, 1)
    assert {notice.certificate.height for notice in notices} == {height}
    assert cluster.rafts[1].certified_height == height  # without a tick


def test_7_2_a_follower_that_leaves_makes_no_certificate_of_its_leaving_for_itself() -> None:
    cluster = led_by(1, 4)
    without_certificate(cluster, 2, 3, 4)
    height = cluster.change(1, n4="")
    cluster.run(2 * limits.VOTE_NOTICE_TICKS)
    assert cluster.rafts[4].certified_height == height - 1
    assert cluster.rafts[2].certified_height == height  # of the same notices
    everything(cluster)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[4].certified_height >= height


def test_7_2_who_leaves_and_lost_touch_asks_and_is_told_by_the_leader_only() -> None:
    cluster = led_by(1, 4)
    cluster.cut = {(1, 4), (2, 4), (3, 4)}
    at = cluster.rafts[1].certified_height
    height = cluster.change(1, n4="")
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[1].certified_height >= height
    cluster.crash(4)
    cluster.heal()
    cluster.start(4)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert at < height <= cluster.rafts[4].certified_height
    assert {notice.sender for notice in cluster.sent(CertificateNotice, target=4)} <= {cluster.node(1)}


def test_7_2_an_answer_that_waits_for_no_disk_names_no_certificate_of_a_change_that_is_not_on_it() -> None:
    cluster = led_by(1, 3)
    without_certificate(cluster, 2)
    height = cluster.change(1, n3="")
    cluster.settle()
    cluster.frozen.add(2)
    everything(cluster)
    cluster.run(4 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[2].certified_height == height
    answers = {answer.certified_height for answer in cluster.sent(HeartbeatReply, 2)}
    assert max(answers) == height - 1
    cluster.thaw(2)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.sent(HeartbeatReply, 2)[-1].certified_height == height


def test_7_2_a_witness_that_leaves_and_lost_touch_is_told_when_it_shows_its_vote() -> None:
    """It never stands for election, so nobody hears of it otherwise."""
    cluster = Cluster(3, witnesses=(4,))
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    without_certificate(cluster, 4)
    height = cluster.change(1, n4="")
    cluster.settle()
    cluster.cut = {(4, n) for n in (1, 2, 3)} | {(n, 4) for n in (1, 2, 3)}
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[1].certified_height >= height > cluster.rafts[4].certified_height
    cluster.heal()
    everything(cluster)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[4].certified_height >= height
