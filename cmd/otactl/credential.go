package main

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// What is read of standard input and of a file of keys; the limits of the server are
// tighter, and it says so better.
const (
	maxPasswordInput = 4096
	maxKeyInput      = 1 << 20
)

func newDeviceCreateCmd(a *app) *cobra.Command {
	var hardware string
	var tags []string
	cmd := &cobra.Command{
		Use: "create ID", Short: "Make a device known that has no certificate", Args: takes("ID"),
		Long: `create makes a device known that will come in with a password or a JWT. Devices
that make a key of their own enroll by a token instead: see "otactl token".`,
		Example: `  otactl device create esp-1 --hardware esp32 --tag site=paris
  otactl device credential set-password esp-1 > esp-1.secret`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			if hardware == "" {
				return usage("--hardware is needed: a release is for hardware models")
			}
			if err := ota.ValidateWord("hardware model", hardware); err != nil {
				return err
			}
			pairs, err := parseTags(tags)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.CreateDevice, &otadv1.CreateDeviceRequest{Id: args[0], Hardware: hardware, Tags: pairs})
			if err != nil {
				return err
			}
			a.note("created %s; it has no credential yet", args[0])
			if a.flags.output == formatTable {
				return nil
			}
			return a.printDevice(newDeviceView(resp.GetDevice()))
		},
	}
	cmd.Flags().StringVar(&hardware, "hardware", "", "its hardware model")
	cmd.Flags().StringArrayVar(&tags, "tag", nil, "tag k=v (repeat)")
	return cmd
}

func newDeviceCredentialCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "credential", Short: "Passwords and keys that devices come in with"},
		newSetPasswordCmd(a), newAddKeyCmd(a), newCredentialListCmd(a), newCredentialDeleteCmd(a))
}

// credentialView is a credential as -o json shows it. Password is there only
// when the server just made it.
type credentialView struct {
	ID        string     `json:"id"`
	Kind      string     `json:"kind"`
	KeyID     string     `json:"kid,omitempty"`
	PublicKey string     `json:"publicKey,omitempty"` // PEM
	Password  string     `json:"password,omitempty"`
	CreatedAt *time.Time `json:"createdAt,omitempty"`
}

func newCredentialView(c *otadv1.DeviceCredential) credentialView {
	return credentialView{ID: c.GetId(), Kind: c.GetKind(), KeyID: c.GetKeyId(), PublicKey: c.GetPublicKey(), CreatedAt: when(c.GetCreatedAt())}
}

func newSetPasswordCmd(a *app) *cobra.Command {
	var stdin bool
	cmd := &cobra.Command{
		Use: "set-password ID", Short: "Give a device a password", Args: takes("ID"),
		Long: `set-password makes a password of 256 random bits and writes it to standard output
once; the server keeps a hash of it. It takes the place of the password that the
device has, and ends its session. With --stdin the password is read from standard
input instead: a command line is visible to every user of the machine.

The device sends its id as the user name and as the client id.`,
		Example: `  otactl device credential set-password esp-1 > esp-1.secret
  otactl device credential set-password esp-1 --stdin < esp-1.secret`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			req := &otadv1.SetDevicePasswordRequest{DeviceId: args[0]}
			if stdin {
				password, err := io.ReadAll(io.LimitReader(a.stdin, maxPasswordInput))
				if err != nil {
					return err
				}
				if req.Password = string(bytes.TrimRight(password, "\r\n")); req.Password == "" {
					return usage("no password on standard input")
				}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.SetDevicePassword, req)
			if err != nil {
				return err
			}
			v := newCredentialView(resp.GetCredential())
			v.Password = resp.GetPassword()
			if v.Password == "" {
				a.note("%s has the password that was read", args[0])
			} else {
				a.note("password of %s; it is not shown again", args[0])
			}
			return printOne(a, v, v.ID, func(w io.Writer) error {
				if v.Password == "" {
					return nil
				}
				_, err := fmt.Fprintln(w, v.Password)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&stdin, "stdin", false, "read the password from standard input")
	return cmd
}

func readKeyFile(name string) ([]byte, error) {
	if name == "" {
		return nil, usage("--key-file is needed: the public key, as PEM or JWK")
	}
	b, err := readSmall(name, maxKeyInput)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(b, []byte("PRIVATE KEY-----")) {
		return nil, hint(usage("%s is a private key; it must not leave its device", name), "openssl pkey -in KEY -pubout makes the public one")
	}
	return b, nil
}

func newAddKeyCmd(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "add-key ID --key-file FILE", Short: "Let a device in with JWTs that it signs", Args: takes("ID"),
		Long: `add-key registers a public key (PEM "PUBLIC KEY", or a JWK): ed25519, ECDSA P-256 or
RSA. The device sends, as its MQTT password, a JWT that the private half has
signed: sub is the device id, aud the server's audience, exp at most 24 h ahead.`,
		Example: `  openssl pkey -in esp-1.key -pubout -out esp-1.pub
  otactl device credential add-key esp-1 --key-file esp-1.pub`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			key, err := readKeyFile(file)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.AddDeviceKey, &otadv1.AddDeviceKeyRequest{DeviceId: args[0], Key: key})
			if err != nil {
				return err
			}
			v := newCredentialView(resp.GetCredential())
			return printOne(a, v, v.ID, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, v.ID)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&file, "key-file", "", "`file` of the public key")
	return cmd
}

func newCredentialListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list ID", Short: "List a device's passwords and keys", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.ListDeviceCredentials, &otadv1.ListDeviceCredentialsRequest{DeviceId: args[0]})
			if err != nil {
				return err
			}
			var views []credentialView
			for _, x := range resp.GetCredentials() {
				views = append(views, newCredentialView(x))
			}
			return printList(a, view[credentialView]{
				name: func(v credentialView) string { return v.ID },
				columns: []column[credentialView]{
					{head: "ID", cell: func(v credentialView) string { return v.ID }},
					{head: "KIND", cell: func(v credentialView) string { return v.Kind }},
					{head: "KID", cell: func(v credentialView) string { return v.KeyID }},
					{head: "CREATED", cell: func(v credentialView) string { return a.ago(v.CreatedAt) }},
				},
			}, views)
		},
	}
}

func newCredentialDeleteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete ID CREDENTIAL", Short: "Take a password or key away and end the device's session", Args: takes("ID", "CREDENTIAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := call(cmd.Context(), c.devices.DeleteDeviceCredential, &otadv1.DeleteDeviceCredentialRequest{DeviceId: args[0], Id: args[1]}); err != nil {
				return err
			}
			a.note("deleted credential %s of %s", args[1], args[0])
			return nil
		},
	}
}
