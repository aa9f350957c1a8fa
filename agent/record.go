package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/otad/otad/pkg/ota"
)

// State is where one execution stands. What a state does is in step.go; what a
// power cut in it leads to is in recover.go.
type State string

// The states, in the order of a good update.
const (
	StateIdle       State = "IDLE"
	StateChecked    State = "CHECKED"     // a job was taken; its metadata is to be verified
	StateWait       State = "WAIT"        // verification is deferred, Reason says why
	StateFetch      State = "FETCH"       // chunks go into the inactive slot
	StateStaged     State = "STAGED"      // read back whole, then sealed
	StateReady      State = "READY"       // waits for window, server and consent, in that order; then announced
	StateArm        State = "ARM"         // next boot only: the new slot
	StateReboot     State = "REBOOT"      // reboot asked for in boot BootID
	StateTrial      State = "TRIAL"       // the new slot runs; health decides
	StateCommit     State = "COMMIT"      // permanent switch, then the floor
	StatePost       State = "POST"        // what may be done only after the commit
	StateRollback   State = "ROLLBACK"    // select the old slot and reboot
	StateDone       State = "DONE"        // succeeded; the verdict is to be queued
	StateFailed     State = "FAILED"      // ended without a trial; the verdict is to be queued
	StateRolledBack State = "ROLLED_BACK" // tried and returned; the verdict is to be queued
	StateCommand    State = "COMMAND"     // a command runs, or is about to
	StateStuck      State = "STUCK"       // returned to a slot that is not healthy either; takes jobs
)

// States lists every state.
var States = []State{
	StateIdle, StateChecked, StateWait, StateFetch, StateStaged, StateReady, StateArm, StateReboot, StateTrial,
	StateCommit, StatePost, StateRollback, StateDone, StateFailed, StateRolledBack, StateCommand, StateStuck,
}

// recordSchema is the version of Record's layout.
const recordSchema = 1

// MaxReason bounds the explanation kept in a record and sent to the server.
const MaxReason = 512

// Record is the journal's content: one execution, and what outlives it (Floor).
// The state is written before its act (the intent), the next state after it
// (done), so every act may run twice.
type Record struct {
	Schema  int    `json:"schema"`
	State   State  `json:"state"`
	BootID  string `json:"bootId,omitempty"` // the boot in which REBOOT or TRIAL was entered
	JobID   string `json:"jobId,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	Command string `json:"command,omitempty"` // name of a command, instead of a release

	From       string `json:"from,omitempty"` // slot that ran when the job was taken
	To         string `json:"to,omitempty"`   // slot that is written
	FromDigest string `json:"fromDigest,omitempty"`
	ToDigest   string `json:"toDigest,omitempty"`

	Watermark int   `json:"watermark,omitempty"` // chunks that are verified and on the disk
	SpanStart int   `json:"spanStart,omitempty"` // first chunk of the last span below the watermark
	Bytes     int64 `json:"bytes,omitempty"`     // fetched over the network

	Quarantined bool `json:"quarantined,omitempty"` // the job lets in what was rolled back here

	Window     ota.Window  `json:"window,omitzero"`     // of the job
	Consent    ota.Consent `json:"consent,omitzero"`    // bounds of what people may put off
	Defers     int         `json:"defers,omitempty"`    // times they did
	DeferUntil time.Time   `json:"deferUntil,omitzero"` // and the end of the last
	Consented  bool        `json:"consented,omitempty"` // they agreed

	Floor      int64      `json:"floor"`                // lowest security version allowed
	FloorAfter int64      `json:"floorAfter,omitempty"` // what it becomes after the commit
	Deadline   time.Time  `json:"deadline,omitzero"`    // of the trial
	BootsLeft  int        `json:"bootsLeft,omitempty"`
	Restages   int        `json:"restages,omitempty"` // times the slot did not read back as written
	Waits      int        `json:"waits,omitempty"`    // failed verifications, but for a server that is away
	Doubts     int        `json:"doubts,omitempty"`   // those that the server's files caused
	Stores     int        `json:"stores,omitempty"`   // journal writes of this execution
	Verdict    ota.Status `json:"verdict,omitempty"`  // of a terminal state
	Class      ota.Class  `json:"class,omitempty"`    // refines a FAILED verdict
	Reason     string     `json:"reason,omitempty"`
}

// ID is the release the record is about.
func (r Record) ID() ota.ReleaseID { return ota.ReleaseID{Name: r.Name, Version: r.Version} }

// idle forgets the execution and keeps what outlives it.
func (r Record) idle() Record { return Record{State: StateIdle, Floor: r.Floor} }

// at is the record in another state.
func (r Record) at(s State) Record {
	r.State = s
	return r
}

// because is the record with an explanation.
func (r Record) because(reason string) Record {
	r.Reason = clip(plain(reason), MaxReason)
	return r
}

// plain is a text that does not grow in JSON: without control characters and
// broken UTF-8, which may come from wherever an error does.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return string([]rune(s[:n-4])) + "..."
}

func encodeRecord(r Record) ([]byte, error) {
	r.Schema = recordSchema
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(r)
	return b.Bytes(), err
}

func decodeRecord(b []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("journal record: %w", err)
	}
	if r.Schema != recordSchema {
		return Record{}, fmt.Errorf("journal record has schema %d: this agent knows %d", r.Schema, recordSchema)
	}
	for _, s := range States {
		if r.State == s {
			return r, nil
		}
	}
	return Record{}, fmt.Errorf("journal record has unknown state %.20q", r.State)
}

// bootExpected reports whether the record speaks of an execution that boots the
// device.
func (r Record) bootExpected() bool {
	switch r.State {
	case StateIdle, StateStuck, StateChecked, StateWait, StateFetch, StateStaged, StateReady:
		return false
	case StateCommand:
		return r.Command == ota.CommandReboot
	}
	return true
}
