package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// Lives of what operators sign. A root outlives the devices' service intervals,
// since an expired one stops every update; targets are renewed by each release
// and by "firmware sign --renew".
const (
	rootLife    = 10 * 365 * 24 * time.Hour
	targetsLife = 365 * 24 * time.Hour
)

func newKeyCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "key", Short: "Make and list the operator's signing keys"},
		newKeyInitCmd(a), newKeyListCmd(a), newKeyExportCmd(a))
}

// keyView is one key of the key directory.
type keyView struct {
	Role   string `json:"role"`
	Public string `json:"public"` // "ed25519:BASE64"
	KeyID  string `json:"keyId"`  // TUF key id
	File   string `json:"file"`
}

// keyInitView is what key init made or found.
type keyInitView struct {
	Keys       []keyView `json:"keys"`
	RootSHA256 string    `json:"rootSha256"` // of the first root, as enrollment tokens pin it
	RootFile   string    `json:"rootFile"`
	Server     string    `json:"server"`
}

func newKeyInitCmd(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "init", Short: "Make the root and targets keys and set the server's first trusted root", Args: takes(),
		Long: `init makes two ed25519 keys, sealed with a passphrase (OTACTL_PASSPHRASE, or
asked for twice): root says which keys count, targets signs releases. It signs
the first root and an empty list of targets and hands both to the server, which
never sees the keys.

The files lie in the key directory before the server hears of them, and are
never overwritten: after a failure run init again, it goes on with what is
there. Keep a copy of the directory: without the root key no key can ever be
replaced.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.initKeys(cmd.Context(), dir) },
	}
	a.keyDirFlag(cmd, &dir)
	return cmd
}

func (a *app) initKeys(ctx context.Context, dir string) error {
	keys, err := a.openKeyDir(dir)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	trust, err := call(ctx, c.trust.GetTrust, &otadv1.GetTrustRequest{})
	if err != nil {
		return err
	}
	if err := a.checkUninitialised(c, keys, trust); err != nil {
		return err
	}
	root, targets, err := a.makeTrust(keys, trust)
	if err != nil {
		return err
	}
	if _, err := call(ctx, c.trust.InitTrust, &otadv1.InitTrustRequest{Root: root, Targets: targets}); err != nil {
		if code := connect.CodeOf(err); code == connect.CodeFailedPrecondition || code == connect.CodeAlreadyExists {
			return hint(fail(exitConflict, "%w", err), "the keys in %s are kept; nothing else was changed", keys.path)
		}
		return hint(err, "the keys in %s are kept; run otactl key init again to go on", keys.path)
	}
	a.note("the server trusts the keys in %s now; keep a copy of that directory", keys.path)
	return a.printInit(c, keys, root)
}

// checkUninitialised refuses to go on when the server has a root, be it ours.
func (a *app) checkUninitialised(c *client, keys keyDir, trust *otadv1.GetTrustResponse) error {
	if len(trust.GetFirstRoot()) == 0 {
		return nil
	}
	local, err := keys.root()
	if err == nil && bytes.Equal(local, trust.GetFirstRoot()) {
		return hint(fail(exitConflict, "%s trusts these keys already", c.server), "nothing is left to do; otactl key list shows them")
	}
	return hint(fail(exitConflict, "%s has a trusted root already (%x)", c.server, signing.RootDigest(trust.GetFirstRoot())),
		"use the keys it was initialised with (--keys DIR); a server's first root can not be replaced")
}

// makeTrust returns the signed first root and targets, from the key directory
// as far as they are there.
func (a *app) makeTrust(keys keyDir, trust *otadv1.GetTrustResponse) (root, targets []byte, err error) {
	var spec signing.RootSpec
	if err := errors.Join(spec.Snapshot.UnmarshalText([]byte(trust.GetSnapshotKey())), spec.Timestamp.UnmarshalText([]byte(trust.GetTimestampKey()))); err != nil {
		return nil, nil, fmt.Errorf("read the server's online keys: %w", err)
	}
	root, err = keys.root()
	if err == nil {
		targets, err = readSmall(keys.file(firstTargets), signing.MaxTargetsBytes)
	}
	if err == nil {
		return root, targets, sameOnline(root, spec, keys)
	}
	if present, statErr := exists(keys.file(rootFile)); statErr != nil || present && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errors.Join(err, statErr)
	}
	return a.signTrust(keys, spec)
}

// sameOnline refuses a root that was made for another server.
func sameOnline(root []byte, spec signing.RootSpec, keys keyDir) error {
	snapshot, timestamp, err := signing.RootOnlineKeys(root)
	if err != nil {
		return err
	}
	if len(snapshot) == 1 && len(timestamp) == 1 && snapshot[0] == spec.Snapshot && timestamp[0] == spec.Timestamp {
		return nil
	}
	return hint(fail(exitConflict, "the root in %s was made for a server with other online keys", keys.path),
		"use another directory for this server: --keys DIR")
}

func (a *app) signTrust(keys keyDir, spec signing.RootSpec) (root, targets []byte, err error) {
	pass, err := a.newPassphrase()
	if err != nil {
		return nil, nil, err
	}
	rootKey, err := keys.makeKey(rootKeyFile, signing.RoleRoot, pass)
	if err != nil {
		return nil, nil, err
	}
	targetsKey, err := keys.makeKey(targetsKeyFile, signing.RoleTargets, pass)
	if err != nil {
		return nil, nil, err
	}
	now := a.now().UTC().Truncate(time.Second)
	spec.RootKeys, spec.RootThreshold = []signing.PublicKey{rootKey.Public()}, 1
	spec.TargetsKeys, spec.TargetsThreshold = []signing.PublicKey{targetsKey.Public()}, 1
	spec.Expires, spec.Issued = now.Add(rootLife), now
	if targets, err = signing.NewTargets(now.Add(targetsLife), signing.TargetsKey{Signer: targetsKey}); err != nil {
		return nil, nil, err
	}
	if root, err = keys.signRoot(spec, rootKey); err != nil {
		return nil, nil, err
	}
	// Targets may be made again as long as the server has none.
	return root, targets, writeFile(keys.file(firstTargets), targets)
}

// signRoot signs and keeps the first root, or keeps the one that is there.
func (k keyDir) signRoot(spec signing.RootSpec, key signing.Key) ([]byte, error) {
	root, err := signing.NewRoot(spec, signing.RootKey{Signer: key})
	if err != nil {
		return nil, err
	}
	if err := writeNewFile(k.file(rootFile), root); !errors.Is(err, fs.ErrExist) {
		return root, err
	}
	if root, err = k.root(); err != nil {
		return nil, err
	}
	return root, sameOnline(root, spec, k)
}

// makeKey makes a sealed key, or opens the one that an earlier run left.
func (k keyDir) makeKey(name, role string, pass []byte) (signing.Key, error) {
	path := k.file(name)
	sealed, err := readSmall(path, signing.MaxSealedBytes)
	if err == nil {
		key, err := signing.Open(sealed, role, pass)
		if errors.Is(err, signing.ErrPassphrase) {
			return key, hint(fail(exitDenied, "%s: %w", path, err), "this key is from an earlier init: give the passphrase of then")
		}
		return key, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return signing.Key{}, err
	}
	key, err := signing.NewKey()
	if err != nil {
		return key, err
	}
	if sealed, err = signing.Seal(key, role, pass); err != nil {
		return key, err
	}
	return key, writeNewFile(path, sealed)
}

func (a *app) printInit(c *client, keys keyDir, root []byte) error {
	list, err := keys.list()
	if err != nil {
		return err
	}
	digest := signing.RootDigest(root)
	v := keyInitView{Keys: list, RootSHA256: hex.EncodeToString(digest[:]), RootFile: keys.file(rootFile), Server: c.server}
	return printOne(a, v, v.RootSHA256, func(w io.Writer) error {
		var fields []field
		for _, key := range list {
			fields = append(fields, field{key.Role + " key", key.KeyID})
		}
		return writeFields(w, append(fields, field{"root SHA-256", v.RootSHA256}, field{"root file", v.RootFile}))
	})
}

// list returns the keys that are there.
func (k keyDir) list() ([]keyView, error) {
	var views []keyView
	for _, name := range []string{rootKeyFile, targetsKeyFile} {
		sealed, err := readSmall(k.file(name), signing.MaxSealedBytes)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		role, err := signing.SealedRole(sealed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.file(name), err)
		}
		public, err := signing.SealedPublic(sealed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.file(name), err)
		}
		views = append(views, keyView{Role: role, Public: public.String(), KeyID: public.ID(), File: k.file(name)})
	}
	return views, nil
}

func newKeyListCmd(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "list", Short: "List the operator's keys", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			keys, err := a.openKeyDir(dir)
			if err != nil {
				return err
			}
			list, err := keys.list()
			if err != nil {
				return err
			}
			if len(list) == 0 {
				a.note("no keys in %s; otactl key init makes them", keys.path)
			}
			return printList(a, view[keyView]{
				name: func(k keyView) string { return k.KeyID },
				columns: []column[keyView]{
					{head: "ROLE", cell: func(k keyView) string { return k.Role }},
					{head: "PUBLIC", cell: func(k keyView) string { return k.Public }},
					{head: "FILE", cell: func(k keyView) string { return k.File }},
					{head: "KEY ID", wide: true, cell: func(k keyView) string { return k.KeyID }},
				},
			}, list)
		},
	}
	a.keyDirFlag(cmd, &dir)
	return cmd
}

func newKeyExportCmd(a *app) *cobra.Command {
	var dir string
	var sealed bool
	cmd := &cobra.Command{
		Use: "export root|targets|root.json", Short: "Write a public key, a sealed key or the first root to standard output",
		Long: `export writes a public key ("ed25519:..."), with --sealed the whole key as it
lies on the disk, still under its passphrase. "export root.json" writes the first
root, which another operator needs to make tokens and to verify releases.`,
		Args: takes("root|targets|root.json"), ValidArgs: []string{signing.RoleRoot, signing.RoleTargets, rootFile},
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := a.openKeyDir(dir)
			if err != nil {
				return err
			}
			out, err := keys.export(args[0], sealed)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(out)
			return err
		},
	}
	cmd.Flags().BoolVar(&sealed, "sealed", false, "the sealed private key")
	a.keyDirFlag(cmd, &dir)
	return cmd
}

func (k keyDir) export(what string, sealed bool) ([]byte, error) {
	var name string
	switch what {
	case rootFile:
		return k.root()
	case signing.RoleRoot:
		name = rootKeyFile
	case signing.RoleTargets:
		name = targetsKeyFile
	default:
		return nil, usage("key %q: want %s, %s or %s", what, signing.RoleRoot, signing.RoleTargets, rootFile)
	}
	raw, err := readSmall(k.file(name), signing.MaxSealedBytes)
	if err != nil {
		return nil, hint(err, "otactl key list shows the keys at hand; otactl key init makes them")
	}
	if sealed {
		return raw, nil
	}
	public, err := signing.SealedPublic(raw)
	return []byte(public.String() + "\n"), err
}
