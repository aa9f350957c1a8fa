package agent

import (
	"fmt"
	"testing"
)

// TestRecoverTable walks every state with every fact a boot chain can state,
// and holds each answer to the design's table.
func TestRecoverTable(t *testing.T) {
	const oldDigest, newDigest = "old", "new"
	pairs := 0
	for _, state := range States {
		for _, active := range []string{"a", "b"} {
			for _, selected := range []string{"a", "b"} {
				for _, oneShot := range []string{"", "b"} {
					for _, boot := range []string{"same", "other"} {
						for _, left := range []int{0, 2} {
							for _, held := range []SlotInfo{{Digest: newDigest, Bootable: true}, {Digest: newDigest}, {Digest: "other", Bootable: true}} {
								pairs++
								r := Record{
									State: state, JobID: "j", From: "a", To: "b", FromDigest: oldDigest, ToDigest: newDigest,
									BootID: "same", BootsLeft: left, Reason: "sick",
								}
								f := BootFacts{
									BootID: boot, Active: active, Selected: selected, OneShot: oneShot,
									Slots: map[string]SlotInfo{"a": {Digest: oldDigest}, "b": held},
								}
								checkRecovery(t, r, f, Recover(r, f))
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d pairs of record and boot facts", pairs)
}

// checkRecovery restates the table as what must never, or always, follow.
func checkRecovery(t *testing.T, r Record, f BootFacts, n Next) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s with %+v: next %+v: %s", r.State, f, n, fmt.Sprintf(format, args...))
	}
	inNew := f.Active == r.To && f.Slots[r.To].Digest == r.ToDigest
	writes := n.State == StateChecked || n.State == StateWait || n.State == StateFetch || n.State == StateStaged || n.State == StateReady
	switch {
	case n.State == StateTrial && !inNew:
		fail("a trial of something else")
	case n.State == StateCommit && !inNew && f.Selected != r.To:
		fail("a commit of what does not run")
	case writes && (r.State == StateFetch || r.State == StateStaged || r.State == StateReady) && f.Active != r.From:
		fail("would write beside a slot it does not know")
	case r.State == StateCommit && f.Selected == r.To && n.State != StateCommit:
		fail("a permanent switch is undone")
	case n.State == StateArm && r.State == StateReady:
		fail("armed without the server's word")
	case n.State == StateIdle && r.State != StateIdle:
		fail("an execution is forgotten without a verdict")
	}
	want := map[State]State{
		StateIdle: StateIdle, StateStuck: StateStuck, StateChecked: StateChecked, StateWait: StateChecked,
		StatePost: StatePost, StateDone: StateDone, StateFailed: StateFailed, StateRolledBack: StateRolledBack,
	}
	if w, fixed := want[r.State]; fixed && n.State != w {
		fail("want %s", w)
	}
	if r.State == StateReboot && !inNew && f.BootID != r.BootID {
		switch {
		case f.OneShot == "" && n.State != StateRolledBack:
			fail("the one-shot was used: want ROLLED_BACK")
		case f.OneShot == r.To && r.BootsLeft > 0 && (n.State != StateArm || !n.Used):
			fail("the one-shot was not used: want ARM again")
		case f.OneShot == r.To && r.BootsLeft == 0 && n.State != StateRollback:
			fail("no boots left: want ROLLBACK")
		}
	}
	if r.State == StateReboot && !inNew && f.BootID == r.BootID && n.State != StateReboot {
		fail("the same boot: want REBOOT")
	}
	if r.State == StateTrial && inNew && f.BootID != r.BootID && r.BootsLeft > 0 && n.State != StateTrial {
		fail("boots are left: the trial goes on")
	}
	if n.State == StateTrial && n.Used != (f.BootID != r.BootID) {
		fail("each boot into a trial counts once")
	}
	if r.State == StateTrial && !inNew || r.State == StateCommit && !inNew && f.Selected != r.To {
		again := r.BootsLeft > 0 && f.Slots[r.To].Bootable && f.Slots[r.To].Digest == r.ToDigest && f.Active == r.From && f.Selected == r.From
		switch {
		case again && (n.State != StateArm || n.Used):
			fail("came back with boots left: want ARM")
		case !again && n.State != StateRolledBack:
			fail("came back: want ROLLED_BACK")
		}
	}
}

// TestRecoverCommand: a reboot is done after it, another command is lost with the
// life that ran it.
func TestRecoverCommand(t *testing.T) {
	f := BootFacts{BootID: "2"}
	for _, c := range []struct {
		command, boot string
		want          State
	}{{"level", "2", StateFailed}, {"level", "1", StateFailed}, {"reboot", "1", StateDone}, {"reboot", "2", StateCommand}} {
		if n := Recover(Record{State: StateCommand, Command: c.command, BootID: c.boot}, f); n.State != c.want {
			t.Errorf("%+v: %+v", c, n)
		}
	}
}

// TestRecoverIsAFixedPoint: recovering what was recovered changes nothing more,
// but for REBOOT after ARM and its count of boots.
func TestRecoverIsAFixedPoint(t *testing.T) {
	f := BootFacts{BootID: "1", Active: "a", Inactive: "b", Selected: "a", Slots: map[string]SlotInfo{}}
	for _, s := range States {
		r := Record{State: s, From: "a", To: "b", ToDigest: "new", BootID: "0"}
		once := Recover(r, f)
		twice := Recover(r.at(once.State).because(once.Reason), f)
		if twice.State != once.State {
			t.Errorf("%s -> %s -> %s", s, once.State, twice.State)
		}
	}
}
