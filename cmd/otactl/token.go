package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newTokenCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "token", Short: "Make and revoke the tokens that devices enroll with"},
		newTokenCreateCmd(a), newTokenListCmd(a), newTokenRevokeCmd(a))
}

// tokenView is an enrollment token as -o json shows it. Token, the secret text,
// is there only when it was just made.
type tokenView struct {
	ID         string            `json:"id"`
	Token      string            `json:"token,omitempty"`
	Uses       int32             `json:"uses"` // devices that may still enroll with it
	DeviceGlob string            `json:"deviceGlob,omitempty"`
	Hardware   string            `json:"hardware,omitempty"`
	Tags       map[string]string `json:"tags"`
	CreatedAt  *time.Time        `json:"createdAt,omitempty"`
	ExpiresAt  *time.Time        `json:"expiresAt,omitempty"`
	RevokedAt  *time.Time        `json:"revokedAt,omitempty"`
}

func newTokenView(t *otadv1.EnrollmentToken) tokenView {
	return tokenView{
		ID: t.GetId(), Uses: t.GetUses(), DeviceGlob: t.GetDeviceGlob(), Hardware: t.GetHardware(), Tags: orEmpty(t.GetTags()),
		CreatedAt: when(t.GetCreatedAt()), ExpiresAt: when(t.GetExpiresAt()), RevokedAt: when(t.GetRevokedAt()),
	}
}

func (t tokenView) state(now time.Time) string {
	switch {
	case t.RevokedAt != nil:
		return "revoked"
	case t.ExpiresAt != nil && !now.Before(*t.ExpiresAt):
		return "expired"
	case t.Uses <= 0:
		return "used up"
	}
	return "usable"
}

// tokenFlags are the options of token create.
type tokenFlags struct {
	keyDir, glob, hardware string
	claimCert              string
	uses                   int32
	expires                time.Duration
	tags                   []string
	trustServerRoot        bool
}

func newTokenCreateCmd(a *app) *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Make an enrollment token", Args: takes(),
		Long: `create makes the text that a device enrolls with, "otae_...". It is written to
standard output once; the server keeps only a hash of it.

The text pins the server's CA and the first TUF root. The root is the local
root.json of "otactl key init", never the server's: so no server can choose
whose signatures the device believes.

With --claim-cert NAME a key is made here and a certificate issued for it, as
NAME.key and NAME.pem: devices of AWS IoT's fleet provisioning show the token by
it. It is good as long as the token, and for nothing else.`,
		Example: `  otactl token create --uses 100 --expires 72h --hardware rpi4 --tag site=paris > token
  otactl token create --device 'gw-*'
  otactl token create --uses 100 --expires 720h --claim-cert claim > token`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.createToken(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.Int32Var(&f.uses, "uses", 1, "how many devices may enroll with it")
	fl.DurationVar(&f.expires, "expires", 24*time.Hour, "how long it is good for")
	fl.StringVar(&f.glob, "device", "", "only device ids that match this pattern, such as 'gw-*'")
	fl.StringVar(&f.hardware, "hardware", "", "the hardware model that every device gets")
	fl.StringVar(&f.claimCert, "claim-cert", "", "also write a claim certificate and its key, as `NAME`.pem and NAME.key")
	fl.StringArrayVar(&f.tags, "tag", nil, "tag k=v that every device gets (repeat)")
	fl.BoolVar(&f.trustServerRoot, "trust-server-root", false, "pin the server's first root without a local one to compare: trusts the server")
	a.keyDirFlag(cmd, &f.keyDir)
	return cmd
}

func (f tokenFlags) request(now time.Time) (*otadv1.CreateEnrollmentTokenRequest, error) {
	if f.uses < 1 {
		return nil, usage("--uses %d: want at least 1", f.uses)
	}
	if f.expires <= 0 {
		return nil, usage("--expires %s: want a time in the future, such as 24h", f.expires)
	}
	if f.hardware != "" {
		if err := ota.ValidateWord("hardware model", f.hardware); err != nil {
			return nil, err
		}
	}
	tags, err := parseTags(f.tags)
	if err != nil {
		return nil, err
	}
	return &otadv1.CreateEnrollmentTokenRequest{
		Uses: f.uses, DeviceGlob: f.glob, Hardware: f.hardware, Tags: tags, ExpiresAt: timestamppb.New(now.Add(f.expires)),
	}, nil
}

func parseTags(pairs []string) (map[string]string, error) {
	tags := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, usage("tag %q: write it as key=value", p)
		}
		if err := ota.ValidateWord("tag key", k); err != nil {
			return nil, err
		}
		tags[k] = v
	}
	return tags, nil
}

func (a *app) createToken(ctx context.Context, f tokenFlags) error {
	req, err := f.request(a.now())
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	pins, err := a.tokenPins(ctx, c, f)
	if err != nil {
		return err
	}
	var claim *claimFiles
	if f.claimCert != "" {
		if claim, err = newClaim(f.claimCert); err != nil {
			return err
		}
		req.ClaimCsr = claim.csr
	}
	resp, err := call(ctx, c.devices.CreateEnrollmentToken, req)
	if err != nil {
		return err
	}
	if claim != nil {
		if err := claim.write(resp.GetClaimCertificate()); err != nil {
			return err
		}
		a.note("claim certificate %s, key %s", claim.certificate, claim.key)
	}
	text, err := pins.token(resp)
	if err != nil {
		return err
	}
	v := newTokenView(resp.GetToken())
	v.Token = text
	a.note("token %s for %s, good until %s; it is not shown again", v.ID, count(int(v.Uses), "device"), req.GetExpiresAt().AsTime().Format(time.RFC3339))
	return printOne(a, v, v.ID, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, v.Token)
		return err
	})
}

// pins are the two digests that a token carries beside its secret.
type pins struct{ ca, root [32]byte }

// tokenPins makes sure that the server is the one whose root is at hand before
// anything is created.
func (a *app) tokenPins(ctx context.Context, c *client, f tokenFlags) (pins, error) {
	var local []byte
	if !f.trustServerRoot {
		keys, err := a.openKeyDir(f.keyDir)
		if err != nil {
			return pins{}, err
		}
		if local, err = keys.root(); err != nil {
			return pins{}, err
		}
	}
	trust, err := call(ctx, c.trust.GetTrust, &otadv1.GetTrustRequest{})
	if err != nil {
		return pins{}, err
	}
	p, err := newPins(c.server, local, trust)
	if err == nil && local == nil {
		a.warn("the token pins the root that the server sent, %x: compare it with the operator's", p.root)
	}
	return p, err
}

// newPins takes the CA from the server, which proved by it who it is, and the
// root from the local file; without one (nil) from the server too.
func newPins(server string, local []byte, trust *otadv1.GetTrustResponse) (pins, error) {
	var p pins
	if len(trust.GetFirstRoot()) == 0 {
		return p, hint(fail(exitFailed, "the server has no trusted root yet"), "otactl key init makes the keys and sets it")
	}
	if len(trust.GetCaSha256()) != len(p.ca) {
		return p, fail(exitFailed, "the server sent a CA digest of %d bytes", len(trust.GetCaSha256()))
	}
	copy(p.ca[:], trust.GetCaSha256())
	p.root = signing.RootDigest(trust.GetFirstRoot())
	if local != nil && p.root != signing.RootDigest(local) {
		return p, otherRoot(server, p.root)
	}
	return p, nil
}

// token puts the secret that the server made and the pins into one text.
func (p pins) token(resp *otadv1.CreateEnrollmentTokenResponse) (string, error) {
	t := enroll.Token{CASHA256: p.ca, RootSHA256: p.root}
	id, err := hex.DecodeString(resp.GetToken().GetId())
	if err != nil || len(id) != len(t.ID) {
		return "", fail(exitFailed, "the server sent token id %q: want %d hex digits", resp.GetToken().GetId(), 2*len(t.ID))
	}
	if len(resp.GetSecret()) != len(t.Secret) {
		return "", fail(exitFailed, "the server sent a secret of %d bytes: want %d", len(resp.GetSecret()), len(t.Secret))
	}
	copy(t.ID[:], id)
	copy(t.Secret[:], resp.GetSecret())
	return t.String(), nil
}

func newTokenListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List enrollment tokens, newest first", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.ListEnrollmentTokens, &otadv1.ListEnrollmentTokensRequest{})
			if err != nil {
				return err
			}
			var views []tokenView
			for _, t := range resp.GetTokens() {
				views = append(views, newTokenView(t))
			}
			return printList(a, a.tokenTable(), views)
		},
	}
}

func (a *app) tokenTable() view[tokenView] {
	return view[tokenView]{
		name: func(t tokenView) string { return t.ID },
		columns: []column[tokenView]{
			{head: "ID", cell: func(t tokenView) string { return t.ID }},
			{head: "STATE", cell: func(t tokenView) string { return t.state(a.now()) }},
			{head: "USES", cell: func(t tokenView) string { return strconv.Itoa(int(t.Uses)) }},
			{head: "DEVICES", cell: func(t tokenView) string { return first(t.DeviceGlob, "*") }},
			{head: "HARDWARE", cell: func(t tokenView) string { return t.Hardware }},
			{head: "EXPIRES", cell: func(t tokenView) string { return a.ago(t.ExpiresAt) }},
			{head: "TAGS", wide: true, cell: func(t tokenView) string { return tagText(t.Tags) }},
			{head: "CREATED", wide: true, cell: func(t tokenView) string { return a.ago(t.CreatedAt) }},
		},
	}
}

func newTokenRevokeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Revoke an enrollment token", Args: takes("ID"),
		Long: "revoke keeps further devices from enrolling with the token. Those that have are not touched.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := call(cmd.Context(), c.devices.RevokeEnrollmentToken, &otadv1.RevokeEnrollmentTokenRequest{Id: args[0]}); err != nil {
				return err
			}
			a.note("revoked token %s", args[0])
			return nil
		},
	}
}

// count writes a number with its noun: 1 device, 3 devices.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
