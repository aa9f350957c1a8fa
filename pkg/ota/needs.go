package ota

import "fmt"

// MaxRequires is how many firmwares a release may require: a device runs one, so
// that of two at most one could be met.
const MaxRequires = 1

// Needs returns what a device has to run when it takes the release, each a firmware
// and the lowest version of it that will do; none: whatever it runs.
func (m Manifest) Needs() []ReleaseID {
	var needs []ReleaseID
	if m.MinVersion != "" {
		needs = append(needs, ReleaseID{m.Name, m.MinVersion})
	}
	return append(needs, m.Requires...)
}

// Admits says why a device that runs this may not take the release; nil: it may. A
// device that does not know what it runs has the zero ReleaseID. What can not be
// compared does not suffice, see Version.
func (m Manifest) Admits(runs ReleaseID) error {
	for _, need := range m.Needs() {
		if runs.Name == need.Name && ParseVersion(runs.Version).since(ParseVersion(need.Version)) {
			continue
		}
		return fmt.Errorf("%s needs %s, and %s", m.ID(), need.orNewer(), runs.running())
	}
	return nil
}

func (id ReleaseID) orNewer() string { return fmt.Sprintf("%s %s or newer", id.Name, id.Version) }

func (id ReleaseID) running() string {
	if id == (ReleaseID{}) {
		return "what runs there is not known"
	}
	if !ParseVersion(id.Version).Ordered() {
		return fmt.Sprintf("%s runs there, a version that can not be compared", id)
	}
	return id.String() + " runs there"
}

// validateNeeds reports needs that no device could ever meet.
func (m Manifest) validateNeeds() error {
	if m.MinVersion != "" {
		if err := (ReleaseID{m.Name, m.MinVersion}).Validate(); err != nil {
			return err
		}
		if c, ok := ParseVersion(m.MinVersion).Compare(ParseVersion(m.Version)); !ok || c >= 0 {
			return invalid("minimum version %s of %s: want a version below %s that can be compared with it, such as 1.4.0", m.MinVersion, m.ID(), m.Version)
		}
	}
	if n := len(m.Requires); n > MaxRequires {
		return invalid("%s requires %d firmwares: a device runs one, so at most %d can be met", m.ID(), n, MaxRequires)
	}
	for _, need := range m.Requires {
		if err := need.Validate(); err != nil {
			return err
		}
		if need.Name == m.Name {
			return invalid("%s requires %s: for another version of the same firmware say its minimum version", m.ID(), need)
		}
		if !ParseVersion(need.Version).Ordered() {
			return invalid("%s requires %s: want a version that can be compared, such as 1.4.0", m.ID(), need)
		}
	}
	if m.MinVersion != "" && len(m.Requires) > 0 {
		return invalid("%s needs %s and requires %s: a device runs one firmware, so say one of them", m.ID(), m.MinVersion, m.Requires[0])
	}
	return nil
}
