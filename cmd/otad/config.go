package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/internal/webhook"
	"github.com/otad/otad/pkg/shadow"
)

// config is everything that can be set: by flag, by OTAD_* in the environment
// (OTAD_DEVICE_LISTEN for --device-listen) or in a YAML file, the first winning.
type config struct {
	Data           string   `koanf:"data"`
	APIListen      string   `koanf:"api-listen"`
	DeviceListen   string   `koanf:"device-listen"`
	MQTTListen     string   `koanf:"mqtt-listen"`
	MQTTPlain      string   `koanf:"mqtt-plain"`
	MQTTPlainAuth  string   `koanf:"mqtt-plain-auth"`
	MQTTLimits     []string `koanf:"mqtt-limit"`
	Hosts          []string `koanf:"hosts"`
	MQTTBroker     string   `koanf:"mqtt-broker"`
	MQTTShared     bool     `koanf:"mqtt-shared"`
	MQTTDeviceURL  string   `koanf:"mqtt-device-url"`
	MQTTClientID   string   `koanf:"mqtt-client-id"`
	CRLFile        string   `koanf:"crl-file"`
	ShadowBytes    int      `koanf:"shadow-bytes"`
	EnrollLimit    int      `koanf:"enroll-limit"`
	TopicPublish   []string `koanf:"topic-publish"`
	TopicSubscribe []string `koanf:"topic-subscribe"`
	JWTAudience    string   `koanf:"jwt-audience"`
	S3Endpoint     string   `koanf:"s3-endpoint"`
	S3Bucket       string   `koanf:"s3-bucket"`
	S3Prefix       string   `koanf:"s3-prefix"`
	S3Region       string   `koanf:"s3-region"`
	S3CreateBucket bool     `koanf:"s3-create-bucket"`
	S3AccessKey    string   `koanf:"s3-access-key"`
	S3SecretKey    string   `koanf:"s3-secret-key"`
	Index          []string `koanf:"index"`
	Database       string   `koanf:"database"`
	DatabaseSecret string   `koanf:"database-password-file"`
	LogFormat      string   `koanf:"log-format"`
	LogLevel       string   `koanf:"log-level"`

	JobLinks time.Duration `koanf:"job-links"`
	// NotifyRate is in devices a second; 0: without a bound.
	NotifyRate int `koanf:"notify-rate"`
	// WebhookAllow are networks that webhooks may reach although they are not public.
	WebhookAllow []string `koanf:"webhook-allow"`
}

// Who is let in on the listener without TLS.
const (
	plainAuthCredentials = "credentials"
	plainAuthNone        = "none"
)

func (c config) path(name string) string { return filepath.Join(c.Data, name) }

// secretKeys may stand in the environment or the file only: a command line is
// visible to every user of the machine.
var secretKeys = []string{"s3-access-key", "s3-secret-key"}

// configFlags adds the flags and returns the func that reads them all together.
func configFlags(cmd *cobra.Command) func() (config, error) {
	f := cmd.Flags()
	f.String("config", "", "YAML `file` with the same names as the flags (or OTAD_CONFIG)")
	f.String("data", "otad-data", "`directory` of everything otad keeps")
	f.String("database", "", "keep everything but images, CA and keys in PostgreSQL: `URL` without the password, which may stand in OTAD_DATABASE or the file")
	f.String("database-password-file", "", "`file` that holds nothing but the database's password")
	f.String("log-format", "auto", "json, text, or auto: text on a terminal, else json")
	f.String("log-level", "info", "debug, info, warn or error")
	f.String("s3-endpoint", "", "keep images in S3: `URL` of the service (keys in OTAD_S3_ACCESS_KEY and OTAD_S3_SECRET_KEY)")
	f.String("s3-bucket", "", "bucket")
	f.String("s3-prefix", "", "prefix of every object")
	f.String("s3-region", "us-east-1", "region")
	f.Bool("s3-create-bucket", false, "create the bucket when there is none")
	return func() (config, error) {
		k := koanf.New(".")
		if path := configPath(f); path != "" {
			if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
				return config{}, fmt.Errorf("config file: %w", err)
			}
		}
		fromEnv := env.Provider(".", env.Opt{Prefix: "OTAD_", TransformFunc: func(key, value string) (string, any) {
			return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, "OTAD_")), "_", "-"), value
		}})
		if err := k.Load(fromEnv, nil); err != nil {
			return config{}, fmt.Errorf("environment: %w", err)
		}
		if err := splitLists(k); err != nil {
			return config{}, err
		}
		// What serve has a default for has it in every subcommand: one file is for all.
		for _, flags := range []*pflag.FlagSet{f, newServeFlags().Flags()} {
			if err := k.Load(posflag.Provider(flags, ".", k), nil); err != nil {
				return config{}, fmt.Errorf("flags: %w", err)
			}
		}
		if err := knownKeys(k, cmd); err != nil {
			return config{}, err
		}
		var c config
		if err := k.Unmarshal("", &c); err != nil {
			return config{}, usageError{fmt.Errorf("settings: %w", err)}
		}
		if flag := f.Lookup("database"); flag.Changed && postgres.HasPassword(flag.Value.String()) {
			return config{}, usageError{errors.New("--database holds a password, and every user of this machine can read a command line: put the URL into OTAD_DATABASE or the config file, or the password into a file for --database-password-file")}
		}
		empty := func(s string) bool { return s == "" }
		for _, list := range []*[]string{&c.Hosts, &c.Index, &c.MQTTLimits, &c.TopicPublish, &c.TopicSubscribe, &c.WebhookAllow} {
			*list = slices.DeleteFunc(*list, empty)
		}
		return c, c.validate()
	}
}

// splitLists makes lists of the texts that stand for one, in the environment or the
// file: as the flags have it, with commas between. One value of a list is a text too.
func splitLists(k *koanf.Koanf) (err error) {
	newServeFlags().Flags().VisitAll(func(f *pflag.Flag) {
		given := k.Get(f.Name)
		if f.Value.Type() != "stringSlice" || given == nil || err != nil {
			return
		}
		parts, isList := given.([]any)
		if !isList {
			text, isText := given.(string)
			if !isText {
				err = usageError{fmt.Errorf("%s: %v is no list of texts: write %[1]s: [A, B]", f.Name, given)}
				return
			}
			for part := range strings.SplitSeq(text, ",") {
				parts = append(parts, part)
			}
		}
		list := make([]string, len(parts))
		for i, part := range parts {
			text, isText := part.(string)
			if !isText {
				err = usageError{fmt.Errorf("%s: %v is no text: put it in quotes", f.Name, part)}
				return
			}
			list[i] = strings.TrimSpace(text)
		}
		err = errors.Join(err, k.Set(f.Name, list))
	})
	return err
}

// configPath is the file to read: the flag's, else the environment's.
func configPath(f *pflag.FlagSet) string {
	if path := f.Lookup("config"); path.Changed {
		return path.Value.String()
	}
	return os.Getenv("OTAD_CONFIG")
}

// logFormat is what "auto" comes to when the log goes to w.
func (c config) logFormat(w io.Writer) string {
	if c.LogFormat != "auto" {
		return c.LogFormat
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return "text"
	}
	return "json"
}

// knownKeys refuses what no flag stands for, since a misspelt setting that is
// passed over can be the one that keeps a port closed. Settings of another
// subcommand are fine.
func knownKeys(k *koanf.Koanf, cmd *cobra.Command) error {
	known := map[string]bool{"config": true, "hosts": true, "out": true}
	for _, name := range secretKeys {
		known[name] = true
	}
	for _, c := range []*cobra.Command{cmd, newServeFlags()} {
		for _, key := range k.Keys() {
			if c.Flags().Lookup(key) != nil {
				known[key] = true
			}
		}
	}
	for _, key := range k.Keys() {
		if !known[key] {
			return usageError{fmt.Errorf("unknown setting %q in the config file or as OTAD_%s", key, strings.ToUpper(strings.ReplaceAll(key, "-", "_")))}
		}
	}
	return nil
}

func (c config) validate() error {
	if c.Data == "" {
		return usageError{errors.New("--data must name a directory")}
	}
	for _, host := range c.Hosts {
		if net.ParseIP(host) == nil && !hostName.MatchString(host) {
			return usageError{fmt.Errorf("hosts: %q: want a name or an address, without a port, such as ota.example", host)}
		}
	}
	if c.Database != "" {
		if err := postgres.Validate(c.Database); err != nil {
			return usageError{fmt.Errorf("--%w", err)}
		}
	} else if c.DatabaseSecret != "" {
		return usageError{errors.New("--database-password-file needs --database")}
	}
	if c.MQTTPlain != "" {
		host, _, err := net.SplitHostPort(c.MQTTPlain)
		ip := net.ParseIP(host)
		if err != nil || ip == nil || !ip.IsLoopback() {
			return usageError{fmt.Errorf("--mqtt-plain %q: plain MQTT listens on a loopback address only, such as 127.0.0.1:1883", c.MQTTPlain)}
		}
	}
	if !slices.Contains([]string{plainAuthCredentials, plainAuthNone}, c.MQTTPlainAuth) {
		return usageError{fmt.Errorf("--mqtt-plain-auth %q: want %s or %s", c.MQTTPlainAuth, plainAuthCredentials, plainAuthNone)}
	}
	if _, err := brokerLimits(c.MQTTLimits); err != nil {
		return err
	}
	if c.MQTTPlainAuth == plainAuthNone && c.MQTTPlain == "" {
		return usageError{errors.New("--mqtt-plain-auth none is about the listener of --mqtt-plain 127.0.0.1:PORT; give that too")}
	}
	if c.MQTTBroker != "" && !fleet.Reserved(c.MQTTClientID) {
		return usageError{fmt.Errorf("--mqtt-client-id %q: want %s or %s-NAME, which no device can have", c.MQTTClientID, fleet.ReservedDeviceID, fleet.ReservedDeviceID)}
	}
	if n := c.EnrollLimit; n < 0 || n > deviceapi.MaxEnrollBurst {
		return usageError{fmt.Errorf("--enroll-limit %d: want 1 to %d", n, deviceapi.MaxEnrollBurst)}
	}
	if n := c.ShadowBytes; n != 0 && (n < minShadowBytes || n > shadow.StateBytesCeiling) {
		return usageError{fmt.Errorf("--shadow-bytes %d: want %d to %d", c.ShadowBytes, minShadowBytes, shadow.StateBytesCeiling)}
	}
	if _, err := fleet.ParseIndexes(c.Index); err != nil {
		return usageError{fmt.Errorf("--index: %w", err)}
	}
	if c.NotifyRate < 0 || c.NotifyRate > fleet.MaxNotifyRate {
		return usageError{fmt.Errorf("--notify-rate %d: want 1 to %d devices a second, or 0 for no bound", c.NotifyRate, fleet.MaxNotifyRate)}
	}
	if _, err := webhook.ParseAllowed(c.WebhookAllow); err != nil {
		return usageError{fmt.Errorf("--webhook-allow %w", err)}
	}
	if c.JobLinks != 0 && (c.JobLinks < fleet.MinLinkLife || c.JobLinks > fleet.MaxLinkLife) {
		return usageError{fmt.Errorf("--job-links %s: want %s to %s, or 0 for none", c.JobLinks, fleet.MinLinkLife, fleet.MaxLinkLife)}
	}
	return nil
}

// validateImages is for the subcommands that open the images: the keys may stand in
// the environment of the service alone, where the others do not have them.
func (c config) validateImages() error {
	if c.S3Endpoint != "" && (c.S3Bucket == "" || c.S3AccessKey == "" || c.S3SecretKey == "") {
		return usageError{errors.New("--s3-endpoint needs --s3-bucket, OTAD_S3_ACCESS_KEY and OTAD_S3_SECRET_KEY")}
	}
	return nil
}

// hostName is what a name may look like that stands in certificates and URLs.
var hostName = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*$`)

// minShadowBytes keeps room for what the agent itself reports.
const minShadowBytes = 1 << 10

// defaultHosts are the names that the server certificate is made for when none
// are given: this machine as its network knows it, and as itself. A name that
// this machine itself can not look up leads nobody here: it comes last then.
func defaultHosts(ctx context.Context) []string {
	hosts := []string{"localhost", "127.0.0.1"}
	name, err := os.Hostname()
	if err != nil || name == "localhost" {
		return hosts
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, name); err != nil {
		return append(hosts, name)
	}
	return append([]string{name}, hosts...)
}

const lookupTimeout = 2 * time.Second
