package agent

import "github.com/otad/otad/pkg/ota"

// Next is what Recover decides: the state to go on in, and why if it is not the
// recorded one.
type Next struct {
	State  State
	Reason string
	// Used: one of the boots that the execution may ask for is used up. Counted
	// with the record that goes on, so that no cut can make it free.
	Used bool
}

// Reasons that Recover gives.
const (
	reasonBootFailed   = "boot failed: the new slot was tried and the device came back in the old one"
	reasonNotAttempted = "boot not attempted: the boot chain ignored the selection"
	reasonNoBootsLeft  = "the trial was interrupted too often"
	reasonSlotsMoved   = "slots were changed from outside during the update"
)

// Recover decides what follows a restart: the journal says what was intended,
// the boot chain what runs. It is the whole table; the fixed point is that a
// permanent switch is never undone here.
func Recover(r Record, f BootFacts) Next {
	inNew := r.To != "" && f.Active == r.To && f.Slots[r.To].Digest == r.ToDigest
	armed := r.To != "" && f.OneShot == r.To
	trial := Next{State: StateTrial, Used: f.BootID != r.BootID}
	switch r.State {
	case StateIdle, StateStuck, StatePost, StateDone, StateFailed, StateRolledBack:
		return Next{State: r.State}
	case StateChecked, StateWait:
		return Next{State: StateChecked}
	case StateFetch, StateStaged, StateReady:
		if f.Active != r.From {
			return Next{State: StateFailed, Reason: reasonSlotsMoved}
		}
		return Next{State: r.State}
	case StateArm:
		switch {
		case inNew:
			return trial
		case armed:
			return Next{State: StateReboot}
		}
		return Next{State: StateArm}
	case StateReboot:
		switch {
		case inNew:
			return trial
		case f.BootID == r.BootID:
			return Next{State: StateReboot}
		case armed && r.BootsLeft > 0:
			return Next{State: StateArm, Used: true}
		case armed:
			return Next{State: StateRollback, Reason: reasonNotAttempted}
		}
		return Next{State: StateRolledBack, Reason: reasonBootFailed}
	case StateTrial:
		switch {
		case !inNew:
			return tryAgain(r, f)
		case f.BootID != r.BootID && r.BootsLeft <= 0:
			return Next{State: StateRollback, Reason: reasonNoBootsLeft}
		}
		return trial
	case StateCommit:
		if f.Selected == r.To || inNew {
			return Next{State: StateCommit}
		}
		return tryAgain(r, f)
	case StateCommand:
		return recoverCommand(r, f)
	case StateRollback:
		if f.Active != r.To && f.Selected != r.To && f.OneShot != r.To {
			return Next{State: StateRolledBack, Reason: r.Reason}
		}
		return Next{State: StateRollback, Reason: r.Reason}
	}
	return Next{State: StateIdle}
}

// recoverCommand follows a command that was under way: a reboot is done when the
// boot is another one, and nothing else is known to be, or is run again.
func recoverCommand(r Record, f BootFacts) Next {
	switch {
	case r.Command != ota.CommandReboot:
		return Next{State: StateFailed, Reason: reasonInterrupted}
	case f.BootID != r.BootID:
		return Next{State: StateDone}
	}
	return Next{State: StateCommand}
}

// tryAgain follows a trial that was cut and came back in the old slot: a boot
// chain that tries once can not tell a crash from a power cut. The new slot ran
// far enough to say TRIAL, so while boots are left it is armed again, untouched.
func tryAgain(r Record, f BootFacts) Next {
	to := f.Slots[r.To]
	kept := to.Bootable && to.Digest == r.ToDigest
	if r.BootsLeft > 0 && kept && f.Active == r.From && f.Selected == r.From {
		return Next{State: StateArm}
	}
	return Next{State: StateRolledBack, Reason: reasonBootFailed}
}
