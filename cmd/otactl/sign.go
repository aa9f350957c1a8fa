package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// signer adds releases to the signed targets with one targets key.
type signer struct {
	app    *app
	client *client
	keys   keyDir
	key    signing.Key
	yes    bool // do not ask before signing
	renew  bool // sign again what is signed, for a new expiry
}

// publishTries is how often a lost race against another operator is run again.
const publishTries = 5

// sign adds the release to the targets that the server holds and publishes
// them. Each try starts from the server's newest targets, checked under the
// local root.
func (s signer) sign(ctx context.Context, c content) error {
	for try := 1; ; try++ {
		err := s.signOnce(ctx, c)
		if connect.CodeOf(err) != connect.CodeAborted || try == publishTries {
			return err
		}
		s.app.note("another operator published meanwhile; signing on top of that")
	}
}

func (s signer) signOnce(ctx context.Context, c content) error {
	t, err := s.client.fetchTrust(ctx, s.keys)
	if err != nil {
		return err
	}
	if old := t.target(c.manifest.ID().TargetPath()); old != nil && c.is(old) && !s.renew {
		s.app.note("%s is signed already, until %s (--renew signs it anew)", c.manifest.ID(), t.expires.Format(time.RFC3339))
		return nil
	}
	withdrawn, err := s.client.withdrawn(ctx, t)
	if err != nil {
		return err
	}
	next, list, err := s.extend(t, []content{c}, withdrawn)
	if err != nil {
		return err
	}
	if err := s.show(t, list, next); err != nil {
		return err
	}
	if !s.yes && s.app.terminal(s.app.stdin) {
		if err := s.app.confirm(false, "sign and publish that"); err != nil {
			return err
		}
	}
	resp, err := call(ctx, s.client.trust.PublishTargets, &otadv1.PublishTargetsRequest{Targets: next})
	if err != nil {
		return err
	}
	if err := s.keys.remember(next); err != nil {
		return fmt.Errorf("signed, but the newest targets could not be kept: %w", err)
	}
	s.app.note("published targets version %d: %s signed", resp.GetVersion(), first(strings.Join(resp.GetSigned(), ", "), "nothing new"))
	return nil
}

// withdrawn are the paths of targets whose releases the server says are withdrawn: no
// next version lists them.
func (c *client) withdrawn(ctx context.Context, t trusted) ([]string, error) {
	resp, err := call(ctx, c.firmware.ListReleases, &otadv1.ListReleasesRequest{})
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, r := range resp.GetReleases() {
		id := ota.ReleaseID{Name: r.GetName(), Version: r.GetVersion()}
		if r.GetState() == string(ota.ReleaseWithdrawn) && t.target(id.TargetPath()) != nil {
			paths = append(paths, id.TargetPath())
		}
	}
	return paths, nil
}

// extend makes and checks the next targets as the server will.
func (s signer) extend(t trusted, add []content, remove []string) ([]byte, []signing.Target, error) {
	now := s.app.now().UTC().Truncate(time.Second)
	targets := make([]signing.Target, len(add))
	for i, c := range add {
		targets[i] = c.target()
	}
	next, err := signing.NextTargets(t.targets, targets, remove, now.Add(targetsLife), signing.TargetsKey{Signer: s.key})
	if errors.Is(err, signing.ErrConflict) {
		return nil, nil, hint(fail(exitConflict, "signed with other content: %w", err), "a signed version never changes; give this one a new version")
	}
	if err != nil {
		return nil, nil, err
	}
	list, err := signing.VerifyTargets(t.root, t.targets, next, now)
	if errors.Is(err, signing.ErrSignature) {
		return nil, nil, hint(fail(exitDenied, "%s: %w", s.key.Public(), err), "the trusted root names other targets keys; otactl key list shows yours")
	}
	return next, list, err
}

// show tells what the signature will say that the last one did not, read back
// from the very bytes that are to be published.
func (s signer) show(t trusted, list []signing.Target, next []byte) error {
	expires, err := expiry(next)
	if err != nil {
		return err
	}
	a := s.app
	a.note("To sign with %s: targets version %d, after %d", s.key.Public(), t.version+1, t.version)
	for _, line := range diffTargets(t.list, list) {
		a.note("  %s", printable(line))
	}
	a.note("  expires %s, was %s", expires.Format(time.RFC3339), t.expires.Format(time.RFC3339))
	return nil
}

// diffTargets says in words what next holds that old does not, and what it no
// longer holds.
func diffTargets(old, next []signing.Target) []string {
	var lines []string
	has := func(list []signing.Target, path string) bool {
		return slices.ContainsFunc(list, func(t signing.Target) bool { return t.Path == path })
	}
	for _, t := range next {
		if !has(old, t.Path) {
			lines = append(lines, "+ "+describeTarget(t))
		}
	}
	for _, t := range old {
		if !has(next, t.Path) {
			lines = append(lines, "- "+describeTarget(t))
		}
	}
	if len(lines) == 0 {
		lines = []string{"no release added or removed"}
	}
	return lines
}

func describeTarget(t signing.Target) string {
	m, err := parseManifest(t.Custom)
	if err != nil {
		return fmt.Sprintf("%s  (no manifest: %v)", t.Path, err)
	}
	text := fmt.Sprintf("%s  for %s  image sha256:%s (%s)  index sha256:%x  installer %s  security version %d",
		m.ID(), strings.Join(m.HardwareIDs, ","), m.ImageDigest, byteSize(m.ImageSize), t.SHA256, m.Installer, m.SecurityVersion)
	if needs := needsText(m.Name, m.MinVersion, releaseIDs(m.Requires)); needs != "" {
		text += "  needs " + needs
	}
	if len(m.Run) > 0 {
		text += fmt.Sprintf("  run %q", m.Run)
	}
	if len(m.Health) > 0 {
		text += "  health " + string(m.Health)
	}
	return text
}

// keyFlags choose the targets key.
type keyFlags struct {
	dir, key string
	yes      bool
}

func (f *keyFlags) register(a *app, cmd *cobra.Command) {
	a.keyDirFlag(cmd, &f.dir)
	cmd.Flags().StringVar(&f.key, "key", "", "sealed targets key to sign with (default: "+targetsKeyFile+" of the key directory)")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask before signing")
}

// newSigner opens the key and checks the server's trust under the local root,
// so that a wrong passphrase or server is found before anything changes.
func (a *app) newSigner(ctx context.Context, c *client, f keyFlags) (signer, error) {
	keys, err := a.openKeyDir(f.dir)
	if err != nil {
		return signer{}, err
	}
	if _, err := c.fetchTrust(ctx, keys); err != nil {
		return signer{}, err
	}
	key, err := a.openKey(first(f.key, keys.file(targetsKeyFile)), signing.RoleTargets)
	return signer{app: a, client: c, keys: keys, key: key, yes: f.yes}, err
}

func newFirmwareSignCmd(a *app) *cobra.Command {
	var f keyFlags
	var path string
	var renew bool
	cmd := &cobra.Command{
		Use: "sign NAME@VERSION", Short: "Sign a draft; shows what will be signed", Args: takes("NAME@VERSION"),
		Long: `sign adds a release to the signed targets. It checks the server's targets under
the local root.json, that index and manifest of the release agree, and with
--image that they describe the file at hand; then it shows what will be signed
that was not before, asks on a terminal, signs and publishes. What was withdrawn
since the last signature is signed no more.`,
		Example: "  otactl firmware sign gateway@1.4.0 --image build/gateway.img",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := ota.ParseReleaseID(args[0])
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			rel, err := a.checkedRelease(cmd.Context(), c, id, path)
			if err != nil {
				return err
			}
			s, err := a.newSigner(cmd.Context(), c, f)
			if err != nil {
				return err
			}
			s.renew = renew
			if err := s.sign(cmd.Context(), rel); err != nil {
				return err
			}
			return a.showStored(cmd.Context(), c, id)
		},
	}
	f.register(a, cmd)
	cmd.Flags().StringVar(&path, "image", "", "raw image that the release has to match")
	cmd.Flags().BoolVar(&renew, "renew", false, "sign again what is signed already, for a new expiry")
	return cmd
}

// checkedRelease fetches a release and checks it in itself and, when a path is
// given, against the local image.
func (a *app) checkedRelease(ctx context.Context, c *client, id ota.ReleaseID, path string) (content, error) {
	resp, err := call(ctx, c.firmware.GetRelease, &otadv1.GetReleaseRequest{Name: id.Name, Version: id.Version})
	if err != nil {
		return content{}, err
	}
	if r := resp.GetRelease(); r.GetState() == string(ota.ReleaseWithdrawn) {
		return content{}, hint(fail(exitFailed, "%s is withdrawn: %s", id, r.GetReason()), "no device installs it any more; upload a new version")
	}
	rel, err := releaseContent(id, resp)
	if err != nil {
		return rel, fail(exitDenied, "what the server says is not consistent: %w", err)
	}
	if path != "" {
		err = a.matchFile(rel.index, path)
	}
	return rel, err
}

func (a *app) showStored(ctx context.Context, c *client, id ota.ReleaseID) error {
	resp, err := call(ctx, c.firmware.GetRelease, &otadv1.GetReleaseRequest{Name: id.Name, Version: id.Version})
	if err != nil {
		return err
	}
	r, err := newReleaseView(resp.GetRelease())
	if err != nil {
		return err
	}
	return a.printRelease(r)
}
