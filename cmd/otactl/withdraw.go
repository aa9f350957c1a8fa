package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// withdrawFlags are the options of firmware withdraw.
type withdrawFlags struct {
	keyFlags
	reason             string
	revert, keep, bare bool
}

func (f withdrawFlags) policy() string {
	switch {
	case f.revert:
		return string(ota.AbortRevert)
	case f.keep:
		return string(ota.AbortKeep)
	}
	return ""
}

func newFirmwareWithdrawCmd(a *app) *cobra.Command {
	var f withdrawFlags
	cmd := &cobra.Command{
		Use: "withdraw NAME@VERSION", Short: "Take a release out of use, for good", Args: takes("NAME@VERSION"),
		Long: `withdraw takes a release out of use. In one step the server ends its rollouts, has
nothing of it begin, leads no device over it and lets nobody roll it out or desire it
any more; what a device has activated goes on to its end. With the targets key the
signed targets are published without it, so that no device installs it whatever it
was told before. That can not be undone: upload a new version.

Without the key at hand, --without-key withdraws it on the server at once. Until
somebody signs the targets without it, by this command or by the next "firmware
sign", devices that were told before may still install it.

Devices that run it stay as they are: they are counted, with the command that lists
them. With --revert the rollouts that it ends bring back the devices they have
changed; "otactl rollout revert" does so later, also for those that were COMPLETED.`,
		Example: `  otactl firmware withdraw gateway@1.4.0 --reason 'the modem hangs after three days'
  otactl firmware withdraw gateway@1.4.0 --reason 'bricks rev C' --without-key --revert --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := ota.ParseReleaseID(args[0])
			if err != nil {
				return err
			}
			return a.withdraw(cmd.Context(), id, f)
		},
	}
	f.register(a, cmd)
	fl := cmd.Flags()
	fl.Lookup("yes").Usage = "do not ask"
	fl.StringVar(&f.reason, "reason", "", "why, for whoever looks for the release (required)")
	fl.BoolVar(&f.revert, "revert", false, "devices that the rollouts it ends have changed go back to what they ran before")
	fl.BoolVar(&f.keep, "keep", false, "they keep what they have, whatever the plans say")
	fl.BoolVar(&f.bare, "without-key", false, "sign nothing now")
	cmd.MarkFlagsMutuallyExclusive("revert", "keep")
	cmd.MarkFlagsMutuallyExclusive("key", "without-key")
	return cmd
}

func (a *app) withdraw(ctx context.Context, id ota.ReleaseID, f withdrawFlags) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	resp, err := call(ctx, c.firmware.GetRelease, &otadv1.GetReleaseRequest{Name: id.Name, Version: id.Version})
	if err != nil {
		return err
	}
	r := resp.GetRelease()
	again := r.GetState() == string(ota.ReleaseWithdrawn)
	switch {
	case again && (f.bare || !r.GetListed()):
		a.note("%s is withdrawn already: %s", id, r.GetReason())
		return a.showStored(ctx, c, id)
	case f.reason == "" && !again:
		return hint(usage("--reason is required"), "it is what people see who look for %s", id)
	}
	var s *signer
	if r.GetListed() && !f.bare {
		if s, err = a.withdrawSigner(ctx, c, f); err != nil {
			return err
		}
	}
	out, err := a.withdrawSigned(ctx, c, s, id, f)
	if err != nil {
		return err
	}
	return a.printWithdrawal(id, out)
}

func (a *app) withdrawSigner(ctx context.Context, c *client, f withdrawFlags) (*signer, error) {
	s, err := a.newSigner(ctx, c, f.keyFlags)
	if err != nil {
		a.note("with --without-key the server withdraws the release now, and who has the key signs the targets without it later")
	}
	return &s, err
}

// withdrawSigned withdraws a release, with targets that the signer signs anew when
// another operator was faster; nil: without.
func (a *app) withdrawSigned(ctx context.Context, c *client, s *signer, id ota.ReleaseID, f withdrawFlags) (*otadv1.WithdrawReleaseResponse, error) {
	req := &otadv1.WithdrawReleaseRequest{Name: id.Name, Version: id.Version, Reason: f.reason, Policy: f.policy()}
	for try := 1; ; try++ {
		if s != nil {
			var err error
			if req.Targets, err = s.without(ctx, id); err != nil {
				return nil, err
			}
		}
		if try == 1 {
			if err := a.confirm(f.yes, "withdraw %s for good, and end its rollouts", id); err != nil {
				return nil, err
			}
		}
		out, err := call(ctx, c.firmware.WithdrawRelease, req)
		if err == nil && len(req.Targets) > 0 {
			if err := s.keys.remember(req.Targets); err != nil {
				return nil, fmt.Errorf("withdrawn, but the newest targets could not be kept: %w", err)
			}
		}
		if connect.CodeOf(err) != connect.CodeAborted || try == publishTries {
			return out, err
		}
		a.note("another operator published meanwhile; signing on top of that")
	}
}

// without are the next targets without a release.
func (s signer) without(ctx context.Context, id ota.ReleaseID) ([]byte, error) {
	t, err := s.client.fetchTrust(ctx, s.keys)
	if err != nil {
		return nil, err
	}
	if t.target(id.TargetPath()) == nil {
		return nil, nil // somebody has signed them without it meanwhile
	}
	remove, err := s.client.withdrawn(ctx, t)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(remove, id.TargetPath()) {
		remove = append(remove, id.TargetPath())
	}
	next, list, err := s.extend(t, nil, remove)
	if err != nil {
		return nil, err
	}
	return next, s.show(t, list, next)
}

// withdrawalView is what a withdrawal did, as -o json shows it.
type withdrawalView struct {
	Firmware       string                 `json:"firmware"`
	State          string                 `json:"state"`
	TargetsVersion int64                  `json:"targetsVersion,omitempty"` // that was published
	Listed         bool                   `json:"listed"`                   // the newest signed targets still list it
	Rollouts       []withdrawnRolloutView `json:"rollouts"`                 // that it ended
	Rerouted       int32                  `json:"rerouted"`                 // devices on the way over it, that go another way
	Running        affectedView           `json:"running"`                  // devices that say they run its image
	Desiring       affectedView           `json:"desiring"`                 // devices that desire it
}

type withdrawnRolloutView struct {
	ID   string `json:"id"`
	From string `json:"from"`
	To   string `json:"to"`
}

type affectedView struct {
	Devices  int32  `json:"devices"`
	Selector string `json:"selector"`
}

func (a *app) printWithdrawal(id ota.ReleaseID, r *otadv1.WithdrawReleaseResponse) error {
	v := withdrawalView{
		Firmware: id.String(), State: r.GetState(), TargetsVersion: r.GetTargetsVersion(), Listed: r.GetListed(), Rollouts: []withdrawnRolloutView{}, Rerouted: r.GetRerouted(),
		Running:  affectedView{r.GetRunning().GetDevices(), r.GetRunning().GetSelector()},
		Desiring: affectedView{r.GetDesiring().GetDevices(), r.GetDesiring().GetSelector()},
	}
	fields := []field{{"Firmware", v.Firmware}, {"State", v.State}}
	if v.TargetsVersion > 0 {
		fields = append(fields, field{"Signed targets", fmt.Sprintf("version %d, without it", v.TargetsVersion)})
	}
	for _, o := range r.GetRollouts() {
		v.Rollouts = append(v.Rollouts, withdrawnRolloutView{o.GetId(), o.GetFrom(), o.GetTo()})
		fields = append(fields, field{"Ended", fmt.Sprintf("rollout %s, was %s, is %s", o.GetId(), o.GetFrom(), o.GetTo())})
	}
	if v.Rerouted > 0 {
		fields = append(fields, field{"On the way over it", count(int(v.Rerouted), "device") + ", by another way now"})
	}
	for _, of := range []struct {
		label string
		affectedView
	}{{"Running it", v.Running}, {"Desiring it", v.Desiring}} {
		if of.Devices > 0 {
			fields = append(fields, field{of.label, fmt.Sprintf("%s: otactl device list --select '%s'", count(int(of.Devices), "device"), of.Selector)})
		}
	}
	err := printOne(a, v, v.Firmware, func(w io.Writer) error { return writeFields(w, fields) })
	if v.Listed {
		a.warn("the signed targets still list %s: devices that were told before may install it until they are signed without, by 'otactl firmware withdraw %[1]s' with the targets key", id)
	}
	return err
}
