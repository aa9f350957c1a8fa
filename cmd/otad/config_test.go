package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/otad/otad/internal/fleet"
)

// loadWith reads the configuration of serve from a file (none when empty) and
// arguments; the environment is the test's.
func loadWith(t *testing.T, file string, args ...string) (config, error) {
	t.Helper()
	if file != "" {
		args = append(args, "--config", write(t, file))
	}
	cmd := newServeFlags()
	load := configFlags(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		return config{}, err
	}
	return load()
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "otad.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagBeatsEnvironmentBeatsFile(t *testing.T) {
	file := "data: of-file\napi-listen: 127.0.0.1:1\ndevice-listen: 127.0.0.1:1\nhosts: [of-file, two]\nmqtt-shared: true\ns3-secret-key: of-file\n"
	t.Setenv("OTAD_API_LISTEN", "127.0.0.1:2")
	t.Setenv("OTAD_DEVICE_LISTEN", "127.0.0.1:2")
	t.Setenv("OTAD_HOSTS", "of-env,,three")
	t.Setenv("OTAD_S3_ACCESS_KEY", "of-env")
	c, err := loadWith(t, file, "--device-listen", "127.0.0.1:3")
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		Data: "of-file", APIListen: "127.0.0.1:2", DeviceListen: "127.0.0.1:3", MQTTListen: ":8883", MQTTPlainAuth: "credentials", MQTTLimits: []string{}, TopicPublish: []string{}, TopicSubscribe: []string{}, WebhookAllow: []string{}, JWTAudience: "otad", Index: []string{}, Hosts: []string{"of-env", "three"},
		MQTTShared: true, MQTTClientID: "otad", ShadowBytes: 8192, EnrollLimit: 60, NotifyRate: 2000, S3Region: "us-east-1", S3AccessKey: "of-env", S3SecretKey: "of-file",
		LogFormat: "auto", LogLevel: "info",
	}
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	t.Setenv("OTAD_DATABASE", "postgres://u:secret@h/d")
	if c, err := loadWith(t, file); err != nil || c.Database != "postgres://u:secret@h/d" {
		t.Errorf("%q, %v", c.Database, err)
	}
	if c, err := loadWith(t, file, "--hosts", "x,y"); err != nil || strings.Join(c.Hosts, " ") != "x y" {
		t.Errorf("%v, %v", c.Hosts, err)
	}
}

// TestListsAreWrittenInAnyWay: what the flag takes, the environment and the file do,
// for every setting that is a list.
func TestListsAreWrittenInAnyWay(t *testing.T) {
	lists := map[string]struct {
		one, two string
		of       func(config) []string
	}{
		"hosts":           {"gw.example", "192.0.2.1", func(c config) []string { return c.Hosts }},
		"index":           {"tags.site", "shadow.reported.a", func(c config) []string { return c.Index }},
		"mqtt-limit":      {"keep-alive=60s", "queued=5", func(c config) []string { return c.MQTTLimits }},
		"topic-publish":   {"a/{device}/#", "b/{device}", func(c config) []string { return c.TopicPublish }},
		"topic-subscribe": {"a/{device}/#", "b/{device}", func(c config) []string { return c.TopicSubscribe }},
		"webhook-allow":   {"10.0.0.0/8", "::1", func(c config) []string { return c.WebhookAllow }},
	}
	newServeFlags().Flags().VisitAll(func(f *pflag.Flag) {
		if _, known := lists[f.Name]; strings.Contains(f.Value.Type(), "Slice") != known {
			t.Errorf("--%s is a %s: is it among the lists of this test?", f.Name, f.Value.Type())
		}
	})
	for name, l := range lists {
		want := []string{l.one, l.two}
		check := func(how string, want []string, file string, args ...string) {
			t.Helper()
			if c, err := loadWith(t, file, args...); err != nil || !slices.Equal(l.of(c), want) {
				t.Errorf("%s %s: %q, %v", name, how, l.of(c), err)
			}
		}
		check("flag", want, "", "--"+name, l.one+","+l.two)
		check("list", want, name+": ['"+l.one+"', '"+l.two+"']\n")
		check("text", want, name+": '"+l.one+","+l.two+"'\n")
		check("text with spaces", want, name+": "+l.one+", "+l.two+" ,\n")
		check("one", []string{l.one}, name+": '"+l.one+"'\n")
		check("none", []string{}, name+": []\n")
		check("nothing", []string{}, name+":\n")
		check("empty", []string{}, name+": ''\n")
		variable := "OTAD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		t.Setenv(variable, l.one+", "+l.two)
		check("environment", want, name+": [x]\n")
		t.Setenv(variable, l.one)
		check("one of the environment", []string{l.one}, "")
		if err := os.Unsetenv(variable); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"5", "true", "[5]", "['" + l.one + "', [x]]", "{a: b}"} {
			if _, err := loadWith(t, name+": "+bad+"\n"); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %s: %v", name, bad, err)
			}
		}
	}
}

func TestWebhookAllow(t *testing.T) {
	if c, err := loadWith(t, "webhook-allow: [10.1.0.0/16, '::1']\n"); err != nil || strings.Join(c.WebhookAllow, " ") != "10.1.0.0/16 ::1" {
		t.Errorf("%v, %v", c.WebhookAllow, err)
	}
	if _, err := loadWith(t, "", "--webhook-allow", "10.1"); err == nil || !strings.Contains(err.Error(), `--webhook-allow "10.1": want a network`) {
		t.Errorf("no network: %v", err)
	}
	t.Setenv("OTAD_WEBHOOK_ALLOW", "10.1.0.0/16,127.0.0.1")
	if c, err := loadWith(t, ""); err != nil || len(c.WebhookAllow) != 2 {
		t.Errorf("%v, %v", c.WebhookAllow, err)
	}
}

func TestTheFileMayBeNamedInTheEnvironment(t *testing.T) {
	t.Setenv("OTAD_CONFIG", write(t, "data: of-env-file\n"))
	if c, err := loadWith(t, ""); err != nil || c.Data != "of-env-file" {
		t.Errorf("%q, %v", c.Data, err)
	}
	if c, err := loadWith(t, "data: of-flag-file\n"); err != nil || c.Data != "of-flag-file" {
		t.Errorf("%q, %v", c.Data, err)
	}
	t.Setenv("OTAD_CONFIG", filepath.Join(t.TempDir(), "none"))
	if _, err := loadWith(t, ""); err == nil || !strings.Contains(err.Error(), "config file") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// everySetting is a file with every name that one may have, all of them in use.
const everySetting = `
data: DATA
api-listen: 127.0.0.1:0
device-listen: 127.0.0.1:0
mqtt-listen: 127.0.0.1:0
mqtt-plain: 127.0.0.1:1883
mqtt-plain-auth: none
mqtt-limit: [keep-alive=60s]
hosts: [localhost]
mqtt-broker: mqtts://broker.example:8883
mqtt-shared: true
mqtt-device-url: mqtts://devices.example:8883
mqtt-client-id: otad-1
crl-file: DATA/crl.pem
shadow-bytes: 8192
enroll-limit: 60
topic-publish: ['sensors/{device}/#']
topic-subscribe: ['sensors/{device}/command']
jwt-audience: otad
index: [tags.site]
job-links: 1h
notify-rate: 100
webhook-allow: [10.1.0.0/16]
database: postgres://otad@127.0.0.1:1/otad?sslmode=disable
database-password-file: DATA/password
s3-endpoint: http://127.0.0.1:1
s3-bucket: firmware
s3-prefix: otad
s3-region: us-east-1
s3-create-bucket: false
s3-access-key: a
s3-secret-key: b
log-format: json
log-level: info
`

// TestOneFileIsForAllSubcommands: each takes the file of the server, with every
// setting and with those alone that make it use an external broker, which may
// stand in the environment too.
func TestOneFileIsForAllSubcommands(t *testing.T) {
	serve := newServeFlags()
	configFlags(serve)
	serve.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && !strings.Contains(everySetting, "\n"+f.Name+": ") {
			t.Errorf("--%s is not in the file", f.Name)
		}
	})
	dir := t.TempDir()
	lines := map[string][][]string{
		"otad check":         {{}},
		"otad broker cert":   {{"--hosts", "broker.example", "--out", filepath.Join(dir, "cert")}},
		"otad broker config": {{"mosquitto"}, {"emqx"}},
		"otad broker crl":    {{}},
	}
	external := "data: DATA\nmqtt-broker: mqtts://broker.example:8883\n"
	take := func(how, file string) {
		file = strings.ReplaceAll(file, "DATA", dir)
		if _, err := loadWith(t, file); err != nil {
			t.Errorf("serve, %s: %v", how, err)
		}
		for command, all := range lines {
			for _, more := range all {
				args := slices.Concat(strings.Fields(command)[1:], more, []string{"--config", write(t, file)})
				if _, err := run(t.Context(), args...); err != nil && exitCode(err) == 2 {
					t.Errorf("%s, %s: %v", command, how, err)
				}
			}
		}
	}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		path := c.CommandPath()
		if _, known := lines[path]; c.Flags().Lookup("config") != nil && !known && path != "otad serve" {
			t.Errorf("%s takes --config: how is it run?", path)
		}
		for _, below := range c.Commands() {
			walk(below)
		}
	}
	walk(newRoot())
	take("every setting", everySetting)
	take("an external broker", external)
	t.Setenv("OTAD_MQTT_BROKER", "mqtts://broker.example:8883")
	take("a broker in the environment", "data: DATA\n")
}

// TestKeysOfS3AreForWhoOpensTheImages: they may stand in the environment of the
// service, which whoever configures a broker does not have.
func TestKeysOfS3AreForWhoOpensTheImages(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	file := write(t, "data: "+data+"\ns3-endpoint: https://s3.example\ns3-bucket: firmware\n")
	for _, args := range [][]string{{"serve"}, {"check"}} {
		if _, err := run(t.Context(), append(args, "--config", file)...); exitCode(err) != 2 || !strings.Contains(err.Error(), "OTAD_S3_ACCESS_KEY") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("a refused command line left a data directory")
	}
	for _, args := range [][]string{{"config", "mosquitto"}, {"cert", "--hosts", "broker.example", "--out", filepath.Join(dir, "cert")}} {
		if _, err := run(t.Context(), slices.Concat([]string{"broker"}, args, []string{"--config", file})...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		file  string
		env   []string
		args  []string
		words string
	}{
		"unknown in the file":          {file: "api-listn: x\n", words: `"api-listn"`},
		"nested in the file":           {file: "mqtt:\n  listen: x\n", words: `"mqtt.listen"`},
		"unknown in the environment":   {env: []string{"OTAD_MQTT_PLAN", "x"}, words: "OTAD_MQTT_PLAN"},
		"unknown flag":                 {args: []string{"--mqtt-plan", "x"}, words: "mqtt-plan"},
		"no YAML":                      {file: "{", words: "config file"},
		"no number of the kind":        {file: "mqtt-shared: maybe\n", words: "mqtt-shared"},
		"no data":                      {args: []string{"--data", ""}, words: "--data"},
		"plain for everybody":          {args: []string{"--mqtt-plain", ":1883"}, words: "loopback"},
		"open without a listener":      {args: []string{"--mqtt-plain-auth", "none"}, words: "--mqtt-plain 127.0.0.1:PORT"},
		"open for all addresses":       {args: []string{"--mqtt-plain", "0.0.0.0:1883", "--mqtt-plain-auth", "none"}, words: "loopback"},
		"unknown limit":                {args: []string{"--mqtt-limit", "speed=1"}, words: "keep-alive"},
		"a limit of nothing":           {args: []string{"--mqtt-limit", "queued=0"}, words: "1 to 50000"},
		"a limit that is no time":      {args: []string{"--mqtt-limit", "keep-alive=60"}, words: "such as 60s"},
		"a limit beyond the protocol":  {args: []string{"--mqtt-limit", "receive-maximum=65536"}, words: "1 to 65535"},
		"a limit above its most":       {args: []string{"--mqtt-limit", "keep-alive=13h"}, words: "at most 12h0m0s"},
		"a negative limit":             {args: []string{"--mqtt-limit", "connections=-1"}, words: "1 to 2147483647"},
		"unknown plain auth":           {args: []string{"--mqtt-plain", "127.0.0.1:1883", "--mqtt-plain-auth", "maybe"}, words: "want credentials or none"},
		"plain for all addresses":      {args: []string{"--mqtt-plain", "0.0.0.0:1883"}, words: "loopback"},
		"plain for a network":          {args: []string{"--mqtt-plain", "192.0.2.1:1883"}, words: "loopback"},
		"plain for a name":             {args: []string{"--mqtt-plain", "localhost:1883"}, words: "loopback"},
		"plain from the environment":   {env: []string{"OTAD_MQTT_PLAIN", "0.0.0.0:1883"}, words: "loopback"},
		"a device's client id":         {args: []string{"--mqtt-broker", "mqtts://b:8883", "--mqtt-client-id", "gw-1"}, words: "otad-NAME"},
		"almost a reserved id":         {args: []string{"--mqtt-broker", "mqtts://b:8883", "--mqtt-client-id", "otadx"}, words: "otad-NAME"},
		"enrollments below none":       {args: []string{"--enroll-limit", "-1"}, words: "1 to 1000000"},
		"a shadow too small":           {args: []string{"--shadow-bytes", "1023"}, words: "1024 to 30720"},
		"a shadow too large":           {args: []string{"--shadow-bytes", "30721"}, words: "1024 to 30720"},
		"two hosts in one":             {file: "hosts: ['a,b']\n", words: `"a,b": want a name or an address`},
		"a host with its port":         {args: []string{"--hosts", "gw:8443"}, words: "without a port"},
		"a host in brackets":           {args: []string{"--hosts", "[::1]"}, words: "without a port"},
		"a host that is a URL":         {env: []string{"OTAD_HOSTS", "https://gw"}, words: "without a port"},
		"access key as a flag":         {args: []string{"--s3-access-key", "x"}, words: "unknown flag"},
		"secret key as a flag":         {args: []string{"--s3-secret-key=x"}, words: "unknown flag"},
		"database password as a flag":  {args: []string{"--database", "postgres://u:p@h/d"}, words: "OTAD_DATABASE"},
		"database password in a query": {args: []string{"--database=postgres://u@h/d?password=p"}, words: "OTAD_DATABASE"},
		"another database":             {env: []string{"OTAD_DATABASE", "mysql://u:p@h/d"}, words: "postgres://"},
		"password file alone":          {args: []string{"--database-password-file", "x"}, words: "needs --database"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.env != nil {
				t.Setenv(c.env[0], c.env[1])
			}
			if _, err := loadWith(t, c.file, c.args...); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %q", err, c.words)
			}
		})
	}
	for _, good := range [][]string{
		{"--mqtt-plain", "127.0.0.1:1883"}, {"--mqtt-plain", "[::1]:1883"}, {"--mqtt-client-id", "gw-1"},
		{"--hosts", "localhost,*.ota.example,my_box,::1"}, {"--enroll-limit", "1000000"}, {"--shadow-bytes", "30720"}, {"--shadow-bytes", "1024"},
		{"--mqtt-broker", "mqtts://b:8883", "--mqtt-client-id", "otad-2"},
		{"--database", "postgres://u@h/d?sslmode=verify-full"},
	} {
		if _, err := loadWith(t, "", good...); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
}

func TestJobLinks(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "job-links: 0\n": 0, "job-links: 1m\n": time.Minute, "job-links: 24h\n": 24 * time.Hour} {
		if c, err := loadWith(t, text); err != nil || c.JobLinks != want {
			t.Errorf("%q: %s, %v", text, c.JobLinks, err)
		}
	}
	for _, bad := range []string{"30s", "25h", "-1h", "often"} {
		if _, err := loadWith(t, "", "--job-links", bad); err == nil || !strings.Contains(err.Error(), "job-links") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestNotifyRate(t *testing.T) {
	for text, want := range map[string]int{"": fleet.DefaultNotifyRate, "notify-rate: 0\n": 0, "notify-rate: 1000000\n": fleet.MaxNotifyRate} {
		if c, err := loadWith(t, text); err != nil || c.NotifyRate != want {
			t.Errorf("%q: %d, %v", text, c.NotifyRate, err)
		}
	}
	for _, bad := range []string{"-1", "1000001", "many"} {
		if _, err := loadWith(t, "", "--notify-rate", bad); err == nil || !strings.Contains(err.Error(), "notify-rate") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if notifyRate(0) != fleet.Unpaced || notifyRate(5) != 5 {
		t.Error("the service is told another rate")
	}
}

// run runs otad in this process.
func run(ctx context.Context, args ...string) (out string, err error) {
	var b bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&b)
	root.SetErr(&b)
	err = root.ExecuteContext(ctx)
	return b.String(), err
}

func TestUsageFaultsHaveStatusTwo(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	for _, args := range [][]string{
		{"serve", "--data", data, "x"}, {"serve", "--data", data, "--unknown"}, {"serve", "--data", data, "--log-format", "xml"},
		{"serve", "--data", data, "--log-level", "loud"}, {"serve", "--data", data, "--mqtt-plain", ":1"}, {"broker", "cert"}, {"check", "x"},
		{"serve", "--data", data, "--s3-secret-key", "x"},
	} {
		if _, err := run(t.Context(), args...); err == nil || exitCode(err) != 2 {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("a refused command line left a data directory")
	}
}

func TestLogFormatOfWhatIsNoTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := (config{LogFormat: "auto"}).logFormat(f); got != "json" {
		t.Errorf("a file: %s", got)
	}
	if got := (config{LogFormat: "auto"}).logFormat(&bytes.Buffer{}); got != "json" {
		t.Errorf("a buffer: %s", got)
	}
	if got := (config{LogFormat: "text"}).logFormat(f); got != "text" {
		t.Errorf("as told: %s", got)
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return // a system without it
	} else if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	if got := (config{LogFormat: "auto"}).logFormat(tty); got != "text" {
		t.Errorf("a terminal: %s", got)
	}
}
