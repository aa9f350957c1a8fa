package agent

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/otad/otad/agent/disk"
)

// Status is what the agent says of itself in Dir/status.json, for people and
// scripts on the device. It decides nothing.
type Status struct {
	Time        time.Time `json:"time"`
	DeviceID    string    `json:"deviceId"`
	Hardware    string    `json:"hardware"`
	State       State     `json:"state"`
	Slot        string    `json:"slot"`
	Firmware    SlotInfo  `json:"firmware"`
	Floor       int64     `json:"securityVersionFloor"`
	JobID       string    `json:"jobId,omitempty"`
	Attempt     int       `json:"attempt,omitempty"`
	Release     string    `json:"release,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Waiting     string    `json:"waiting,omitempty"` // for what a job waits, begun or not
	LastError   string    `json:"lastError,omitempty"`
	RootVersion int64     `json:"rootVersion"`
	TrustAlarm  string    `json:"trustAlarm,omitempty"`
	// TrustExpires is when the verified metadata is over; zero: there is none.
	// Passed, without an alarm: it is renewed as soon as the server is reached.
	TrustExpires time.Time `json:"trustExpires,omitzero"`
	ClockFloor   time.Time `json:"clockFloor"`
	Pending      int       `json:"pendingReports"`
	Quarantine   []string  `json:"quarantine,omitempty"` // digests of images
}

const (
	statusName     = "status.json"
	maxStatusBytes = 64 << 10
)

// ReadStatus reads the status that an agent left in dir.
func ReadStatus(dir string) (Status, error) {
	var s Status
	b, err := disk.ReadFile(disk.OS{}, dir+"/"+statusName, maxStatusBytes)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", statusName, err)
	}
	return s, nil
}

func (a *Agent) status() Status {
	s := Status{
		Time: a.cfg.Now().UTC(), DeviceID: a.cfg.DeviceID, Hardware: a.cfg.Hardware,
		State: a.rec.State, Slot: a.facts.Active, Firmware: a.facts.Slots[a.facts.Active], Floor: a.rec.Floor,
		JobID: a.rec.JobID, Attempt: a.rec.Attempt, Reason: a.rec.Reason, Waiting: a.waiting.reason, LastError: a.lastErr,
		RootVersion: a.trust.trust.RootVersion(), TrustAlarm: a.trust.alarms(), TrustExpires: a.trust.trust.Expires(), ClockFloor: a.trust.trust.ClockFloor(),
		Pending: a.outbox.len(), Quarantine: a.history.quarantined(),
	}
	if a.rec.Command != "" {
		s.Release = "command " + a.rec.Command
	} else if a.rec.JobID != "" {
		s.Release = a.rec.ID().String()
	}
	return s
}

// writeStatus is best effort: nothing depends on it.
func (a *Agent) writeStatus() {
	b, err := json.MarshalIndent(a.status(), "", "  ")
	if err == nil {
		err = disk.WriteLoose(a.cfg.FS, a.cfg.Dir, statusName, append(b, '\n'), 0o600)
	}
	if err != nil {
		a.cfg.Log.Warn("write status", "err", err)
	}
}
