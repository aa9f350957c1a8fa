package main

import (
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newIssuerCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "jwt-issuer", Short: "Parties whose JWTs let devices in"},
		newIssuerAddCmd(a), newIssuerListCmd(a), newIssuerDeleteCmd(a))
}

// issuerView is a JWT issuer as -o json shows it.
type issuerView struct {
	Name       string     `json:"name"`
	Keys       int        `json:"keys"`
	KeyIDs     []string   `json:"kids"`
	DeviceGlob string     `json:"deviceGlob,omitempty"`
	CreatedAt  *time.Time `json:"createdAt,omitempty"`
}

func newIssuerView(i *otadv1.JwtIssuer) issuerView {
	v := issuerView{Name: i.GetName(), Keys: len(i.GetKeyIds()), KeyIDs: []string{}, DeviceGlob: i.GetDeviceGlob(), CreatedAt: when(i.GetCreatedAt())}
	for _, kid := range i.GetKeyIds() {
		if kid != "" {
			v.KeyIDs = append(v.KeyIDs, kid)
		}
	}
	return v
}

func newIssuerAddCmd(a *app) *cobra.Command {
	var file, glob string
	cmd := &cobra.Command{
		Use: "add NAME --key-file FILE", Short: "Believe an issuer's JWTs", Args: takes("NAME"),
		Long: `add lets in the devices that JWTs of this issuer name. NAME is their claim iss, byte
for byte; FILE its public keys, as PEM or as a JWKS. The devices have to be known:
"otactl device create". Whoever has the issuer's private key can be any device
that --device lets through.`,
		Example: `  otactl jwt-issuer add https://id.example --key-file jwks.json --device 'gw-*'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := readKeyFile(file)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.CreateJwtIssuer, &otadv1.CreateJwtIssuerRequest{Name: args[0], Keys: keys, DeviceGlob: glob})
			if err != nil {
				return err
			}
			v := newIssuerView(resp.GetIssuer())
			a.note("%s vouches for %s with %s", v.Name, first(v.DeviceGlob, "every device"), count(v.Keys, "key"))
			return printOne(a, v, v.Name, func(io.Writer) error { return nil })
		},
	}
	cmd.Flags().StringVar(&file, "key-file", "", "`file` of the public keys: PEM or JWKS")
	cmd.Flags().StringVar(&glob, "device", "", "only device ids that match this pattern, such as 'gw-*'")
	return cmd
}

func newIssuerListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List JWT issuers", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.ListJwtIssuers, &otadv1.ListJwtIssuersRequest{})
			if err != nil {
				return err
			}
			var views []issuerView
			for _, i := range resp.GetIssuers() {
				views = append(views, newIssuerView(i))
			}
			return printList(a, view[issuerView]{
				name: func(v issuerView) string { return v.Name },
				columns: []column[issuerView]{
					{head: "NAME", cell: func(v issuerView) string { return v.Name }},
					{head: "KEYS", cell: func(v issuerView) string { return strconv.Itoa(v.Keys) }},
					{head: "DEVICES", cell: func(v issuerView) string { return first(v.DeviceGlob, "*") }},
					{head: "CREATED", cell: func(v issuerView) string { return a.ago(v.CreatedAt) }},
				},
			}, views)
		},
	}
}

func newIssuerDeleteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Believe an issuer no more", Args: takes("NAME"),
		Long: "delete ends the sessions that began with a JWT of this issuer, within seconds.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := call(cmd.Context(), c.devices.DeleteJwtIssuer, &otadv1.DeleteJwtIssuerRequest{Name: args[0]}); err != nil {
				return err
			}
			a.note("deleted JWT issuer %s", args[0])
			return nil
		},
	}
}
