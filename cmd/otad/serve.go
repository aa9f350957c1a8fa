package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/blob/dir"
	"github.com/otad/otad/internal/blob/s3"
	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/broker"
	"github.com/otad/otad/internal/mqtt/external"
	"github.com/otad/otad/internal/observability"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/internal/webhook"
	"github.com/otad/otad/pkg/shadow"
	"github.com/otad/otad/pkg/signing"
)

func newServeFlags() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server; everything is embedded unless told otherwise",
		Long: "Runs the server. With no flags it keeps everything in ./otad-data: a SQLite database, images in a\n" +
			"directory, an MQTT broker, a certificate authority and the signed metadata. The operator API listens\n" +
			"on loopback; devices come in by TLS with a certificate that enrollment gives them.\n\n" +
			"Every flag may stand in a YAML file (--config) or in the environment (OTAD_DEVICE_LISTEN for\n" +
			"--device-listen).",
		Args: noArgs,
	}
	f := cmd.Flags()
	f.String("api-listen", "127.0.0.1:8443", "`address` of the operator API (HTTPS)")
	f.String("device-listen", ":8444", "`address` of the device HTTPS plane")
	f.String("mqtt-listen", ":8883", "`address` of the embedded broker (TLS)")
	f.String("mqtt-plain", "", "loopback `address` for plain MQTT, off by default")
	f.String("mqtt-plain-auth", plainAuthCredentials, "who is let in there: credentials, or none: everybody, on all topics but $aws/, $SYS/ and ota/ (for tools and test suites)")
	f.StringSlice("hosts", nil, "`names` and addresses devices and operators reach this server by; the first stands in URLs (default: this host, localhost)")
	f.StringSlice("index", nil, "`fields` that selectors look up rather than search for, such as tags.site,shadow.reported.firmware.version")
	f.StringSlice("mqtt-limit", nil, "a limit of the embedded broker, as `NAME=VALUE` (keep-alive=60s); see docs/operations.md")
	f.String("mqtt-broker", "", "use an external MQTT 5 broker: `URL` such as mqtts://broker:8883; nothing embedded is started then")
	f.Bool("mqtt-shared", false, "replicas share the broker's messages by shared subscriptions; the broker must support them for topics that begin with $ (mosquitto does not)")
	f.String("crl-file", "", "keep the list of revoked device certificates in this `file`, for the external broker (reload it when the file changes)")
	f.String("mqtt-device-url", "", "`URL` at which devices reach the external broker, if it is another")
	f.Int("notify-rate", fleet.DefaultNotifyRate, "`devices` that are told of a job in a second when a rollout has work for many; 0: as fast as can be")
	f.StringSlice("webhook-allow", nil, "`networks` that webhooks may reach although they are not public, such as 10.1.0.0/16; to these also by http")
	f.Duration("job-links", 0, "`life` of download links in job documents, for devices without our agent, which then believe the server; 0: no links")
	f.String("mqtt-client-id", fleet.ReservedDeviceID, "`name` at the external broker, in the certificate too: otad, or otad-NAME for each replica")
	f.Int("shadow-bytes", shadow.MaxStateBytes, fmt.Sprintf("`bytes` that desired and reported of one shadow may take together, at most %d", shadow.StateBytesCeiling))
	f.Int("enroll-limit", deviceapi.EnrollBurst, "`devices` that one address may enroll in a minute: raise it for a factory behind one address")
	topicFlags(f)
	f.String("jwt-audience", fleet.DefaultJWTAudience, "`audience` (aud) that a device's JWT must be for")
	return cmd
}

func newServeCmd() *cobra.Command {
	cmd := newServeFlags()
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if err := c.validateImages(); err != nil {
			return err
		}
		log, err := observability.NewLogger(cmd.ErrOrStderr(), c.logFormat(cmd.ErrOrStderr()), c.LogLevel)
		if err != nil {
			return usageError{err}
		}
		return serve(cmd.Context(), c, log, cmd)
	}
	return cmd
}

// server is a running otad, from the stores at the bottom to the listeners.
type server struct {
	config    config
	log       *slog.Logger
	metrics   *observability.Metrics
	ca        *identity.CA
	store     *sqlstore.Store
	claim     *sqlstore.Claim // of the embedded broker's state, nil with an external one
	blobs     blob.Store
	templates *mqtt.Templates
	publisher *mqtt.Publisher
	fleet     *fleet.Service
	broker    mqtt.Broker
	away      func() error // why an external broker is of no use now, nil with the embedded one
	endpoint  *mqtt.Endpoint
	webSocket http.Handler // the embedded broker's, nil with an external one
	addresses addresses
}

// addresses is what DIR/addresses.json says once devices are let in.
type addresses struct {
	API    string `json:"api"`
	Device string `json:"device"`
	MQTT   string `json:"mqtt"`
	Plain  string `json:"mqttPlain,omitempty"`
}

func serve(ctx context.Context, c config, log *slog.Logger, cmd *cobra.Command) (err error) {
	if len(c.Hosts) == 0 {
		c.Hosts = defaultHosts(ctx)
	}
	s := &server{config: c, log: log, metrics: observability.NewMetrics(version)}
	if s.templates, err = c.templates(); err != nil {
		return err
	}
	if err := s.openStore(ctx); err != nil {
		return err
	}
	defer func() {
		if s.claim != nil {
			s.claim.Release()
		}
		err = errors.Join(err, s.store.Close())
	}()
	if err := s.openFiles(ctx); err != nil {
		return err
	}
	apiListener, err := listen(ctx, c.APIListen)
	if err != nil {
		return err
	}
	defer func() { _ = apiListener.Close() }() // closed by Shutdown already, unless a later step failed
	deviceListener, err := listen(ctx, c.DeviceListen)
	if err != nil {
		return err
	}
	defer func() { _ = deviceListener.Close() }()
	s.addresses.API = s.url("https", apiListener.Addr().String(), apiHosts(c))
	s.addresses.Device = s.url("https", deviceListener.Addr().String(), c.Hosts)
	if err := s.openFleet(); err != nil {
		return err
	}
	if err := s.fleet.CheckOnlineKeys(ctx); err != nil {
		return fmt.Errorf("keys in %s: %w", s.config.path("keys"), err)
	}
	if err := s.openBroker(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.broker.Close()) }()
	if err := s.bootstrap(ctx); err != nil {
		return err
	}
	return s.run(ctx, apiListener, deviceListener, cmd.OutOrStdout())
}

// apiHosts puts the loopback address first when the API listens only there.
func apiHosts(c config) []string {
	if host, _, err := net.SplitHostPort(c.APIListen); err == nil && host != "" && net.ParseIP(host) != nil && !net.ParseIP(host).IsUnspecified() {
		return []string{host}
	}
	return c.Hosts
}

func (s *server) url(scheme, address string, hosts []string) string {
	_, port, _ := net.SplitHostPort(address) // the address of our own listener
	return scheme + "://" + net.JoinHostPort(hosts[0], port)
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w; is another otad running? choose another address by flag", err)
	}
	return l, nil
}

// openStore comes before everything else that is kept in the directory: it
// locks out another otad.
func (s *server) openStore(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.config.Data, 0o700); err != nil {
		return err
	}
	store, err := openStore(ctx, s.config)
	if err != nil {
		return err
	}
	s.store = store
	if err := s.indexFields(ctx); err != nil {
		return errors.Join(err, store.Close())
	}
	return nil
}

// indexFields makes the indexes that are declared. On a large fleet a new one
// takes its time, so it is said.
func (s *server) indexFields(ctx context.Context) error {
	fields, err := fleet.ParseIndexes(s.config.Index)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := s.store.IndexFields(ctx, fields); err != nil {
		return err
	}
	if took := time.Since(start); took > time.Second {
		s.log.Info("indexes made", "fields", s.config.Index, "took", took.Round(time.Millisecond).String())
	}
	return nil
}

// openStore opens PostgreSQL when it is asked for, else the file in the data
// directory.
func openStore(ctx context.Context, c config) (*sqlstore.Store, error) {
	if c.Database == "" {
		return sqlite.Open(ctx, c.path("otad.db"))
	}
	var password string
	if c.DatabaseSecret != "" {
		b, err := os.ReadFile(c.DatabaseSecret)
		if err != nil {
			return nil, fmt.Errorf("database password: %w", err)
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	return postgres.Open(ctx, postgres.Config{URL: c.Database, Password: password})
}

func (s *server) openFiles(ctx context.Context) (err error) {
	if s.ca, err = identity.Open(s.config.path("ca"), time.Now()); err != nil {
		return err
	}
	s.blobs, err = openBlobs(ctx, s.config)
	return err
}

func openBlobs(ctx context.Context, c config) (blob.Store, error) {
	if c.S3Endpoint == "" {
		return dir.New(c.path("blobs"))
	}
	u, err := url.Parse(c.S3Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usageError{fmt.Errorf("--s3-endpoint %q: want a URL such as https://s3.example.com", c.S3Endpoint)}
	}
	return s3.New(ctx, s3.Config{
		Endpoint: u.Host, TLS: u.Scheme == "https", Bucket: c.S3Bucket, Prefix: c.S3Prefix, Region: c.S3Region, CreateBucket: c.S3CreateBucket,
		AccessKey: c.S3AccessKey, SecretKey: c.S3SecretKey,
	})
}

func (s *server) openFleet() error {
	online, err := openOnlineKeys(s.config.path("keys"))
	if err != nil {
		return err
	}
	allowed, err := webhook.ParseAllowed(s.config.WebhookAllow)
	if err != nil {
		return err
	}
	s.publisher = &mqtt.Publisher{Now: time.Now}
	s.fleet = fleet.New(fleet.Config{
		Store: s.store, Blobs: s.blobs, Publisher: s.publisher, CA: s.ca, OnlineKeys: online,
		Now: time.Now, Log: s.log, DeviceURL: s.addresses.Device,
		MaxShadowBytes: s.config.ShadowBytes,
		JWTAudience:    s.config.JWTAudience,
		LinkLife:       s.config.JobLinks,
		NotifyRate:     notifyRate(s.config.NotifyRate),
		Sender:         s.metrics.Webhooks(webhook.New(allowed, "otad/"+version)),
	})
	s.publisher.Document = s.fleet.JobDocument
	observability.AddFigures(s.metrics, s.fleet.OnlineCount, deviceFigures)
	observability.AddFigures(s.metrics, s.fleet.LoginFigures, loginFigures)
	observability.AddFigures(s.metrics, s.fleet.WebhookFigures, webhookFigures)
	return nil
}

// openOnlineKeys loads the snapshot and timestamp keys, made at the first start.
// They rest unsealed in a private file, as the server needs them unattended;
// what they can do is limited by the offline root.
func openOnlineKeys(dir string) (signing.Online, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return signing.Online{}, err
	}
	key := func(role string) (signing.OnlineKey, error) {
		path := filepath.Join(dir, role+".key")
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			k, err := signing.NewKey()
			if err != nil {
				return signing.OnlineKey{}, err
			}
			return signing.OnlineKey{Signer: k}, identity.WriteFile(path, k.Seed())
		}
		if err != nil {
			return signing.OnlineKey{}, err
		}
		k, err := signing.KeyFromSeed(b)
		if err != nil {
			return signing.OnlineKey{}, fmt.Errorf("%s: %w", path, err)
		}
		return signing.OnlineKey{Signer: k}, nil
	}
	snapshot, err := key("snapshot")
	if err != nil {
		return signing.Online{}, err
	}
	timestamp, err := key("timestamp")
	return signing.Online{Snapshot: snapshot, Timestamp: timestamp}, err
}

func (s *server) openBroker(ctx context.Context) error {
	var b mqtt.Broker
	var err error
	if s.config.MQTTBroker != "" {
		b, err = s.connectBroker()
	} else {
		b, err = s.startBroker(ctx)
	}
	if err != nil {
		return err
	}
	s.broker = s.metrics.Broker(b)
	s.publisher.Broker = s.broker
	s.fleet.MQTTURL = s.addresses.MQTT
	s.endpoint = mqtt.NewEndpoint(s.broker, s.fleet, s.log, time.Now)
	s.endpoint.Provisioning, s.endpoint.Told = s.config.MQTTBroker == "", s.config.MQTTBroker == ""
	return nil
}

// open lets the devices in and says so. An external broker may be away as long as it
// likes: everybody else is served meanwhile. nil when ctx ends before.
func (s *server) open(ctx context.Context, out io.Writer) error {
	if s.config.MQTTBroker != "" {
		s.log.Info("waiting for the broker", "broker", s.config.MQTTBroker, "api", s.addresses.API, "device", s.addresses.Device)
	}
	// The subscription outlives ctx, as Close ends it after the listeners; but
	// waiting for a broker that is away has to end when ctx does.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	opened := context.AfterFunc(ctx, end)
	err := s.endpoint.Serve(life)
	if !opened() {
		return nil
	}
	if err != nil {
		end()
		return err
	}
	return s.announce(context.WithoutCancel(ctx), out)
}

func (s *server) startBroker(ctx context.Context) (mqtt.Broker, error) {
	limits, err := brokerLimits(s.config.MQTTLimits)
	if err != nil {
		return nil, err
	}
	if s.claim, err = s.store.ClaimBroker(ctx); err != nil {
		return nil, fmt.Errorf("%w; see \"PostgreSQL\" in docs/operations.md", err)
	}
	if err := s.fleet.BrokerStarts(ctx); err != nil {
		return nil, err
	}
	b, err := broker.New(ctx, broker.Config{
		Store: s.claim, Limits: limits,
		TLSAddr: s.config.MQTTListen, TLS: s.tlsConfig(tls.VerifyClientCertIfGiven), PlainAddr: s.config.MQTTPlain,
		Authenticate: s.authenticate, Presence: s.fleet.Presence, Logger: s.log,
	})
	if err != nil {
		return nil, err
	}
	s.webSocket = b
	observability.AddFigures(s.metrics, b.Stats, brokerFigures)
	s.addresses.MQTT = s.url("mqtts", b.Addr(), s.config.Hosts)
	if s.config.MQTTPlain != "" {
		s.addresses.Plain = "mqtt://" + b.PlainAddr()
	}
	return b, nil
}

// openIdentity is who everybody is on the listener without credentials.
const openIdentity = "anonymous"

// authenticate says who a connection is and what it may use.
func (s *server) authenticate(ctx context.Context, c broker.Credentials) (mqtt.Identity, error) {
	if c.Plain && s.config.MQTTPlainAuth == plainAuthNone {
		return mqtt.Identity{Name: openIdentity, Access: mqtt.OpenAccess()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	a, err := s.fleet.Login(ctx, fleet.Login{
		Certificates: c.Certificates, ClientID: c.ClientID, Username: c.Username, Password: c.Password, Remote: c.Remote,
	})
	switch {
	case errors.Is(err, fleet.ErrDenied):
		return mqtt.Identity{}, err
	case err != nil:
		return mqtt.Identity{}, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	case a.Claim:
		return mqtt.Identity{Name: a.Name, Passing: true, Access: mqtt.ProvisioningAccess()}, nil
	}
	companion := slices.Contains(mqtt.CompanionIDs(a.Name), c.ClientID)
	return mqtt.Identity{
		Name: a.Name, Device: !companion, Access: mqtt.DeviceAccess(a.Name, s.templates), Until: a.Until, Voucher: a.Voucher,
	}, nil
}

func (s *server) connectBroker() (mqtt.Broker, error) {
	s.addresses.MQTT = s.config.MQTTBroker
	if s.config.MQTTDeviceURL != "" {
		s.addresses.MQTT = s.config.MQTTDeviceURL
	}
	group := ""
	if s.config.MQTTShared {
		var err error
		if group, err = s.brokerGroup(); err != nil {
			return nil, err
		}
	}
	b, err := external.New(external.Config{
		URL: s.config.MQTTBroker, Group: group, ClientID: s.config.MQTTClientID, Logger: s.log,
		TLS:     s.ca.Client(s.config.MQTTClientID, time.Now),
		StandIn: func(deviceID string) (*tls.Config, error) { return s.ca.StandIn(deviceID, time.Now()) },
	})
	if err != nil {
		return nil, err
	}
	s.away = b.Away
	return mqtt.Admitted(b, s.fleet, s.log), nil
}

// brokerGroup is the name under which replicas share their subscription. It is
// the same for all that hold the online keys, and no device can guess it and
// take messages away by joining.
func (s *server) brokerGroup() (string, error) {
	secret, err := s.fleet.OnlineKeys.Timestamp.Sign([]byte("otad shared subscription"))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:16]), nil
}

func (s *server) tlsConfig(auth tls.ClientAuthType) *tls.Config {
	c := s.ca.Server(append([]string{"localhost", "127.0.0.1"}, s.config.Hosts...), time.Now)
	c.ClientAuth, c.ClientCAs = auth, s.ca.Devices()
	return c
}

// bootstrap writes what an operator needs: the CA and the admin token (once).
func (s *server) bootstrap(ctx context.Context) error {
	if err := identity.WriteFile(s.config.path("ca.pem"), s.ca.RootPEM()); err != nil {
		return err
	}
	if _, err := os.Stat(s.config.path("admin.token")); errors.Is(err, os.ErrNotExist) {
		token, err := s.fleet.CreateAPIToken(ctx, "admin")
		if err != nil {
			return err
		}
		if err := identity.WriteFile(s.config.path("admin.token"), []byte(token+"\n")); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return nil
}

// announce tells programs, and a person at a terminal, where everything is, and the
// latter what to do next.
func (s *server) announce(ctx context.Context, w io.Writer) error {
	b, err := json.MarshalIndent(s.addresses, "", "  ")
	if err != nil {
		return err
	}
	if err := identity.WriteFile(s.config.path("addresses.json"), append(b, '\n')); err != nil {
		return err
	}
	trust, err := s.fleet.Trust(ctx)
	if err != nil {
		return err
	}
	sum := s.ca.RootSHA256()
	fmt.Fprintf(w, `otad %s is ready
  operator API    %s
  devices         %s
  MQTT            %s
  CA              %s (sha256 %s)
  admin token     %s
next
  otactl login --server %[2]s --token-file %[7]s --ca-file %[5]s
`, version, s.addresses.API, s.addresses.Device, s.addresses.MQTT, s.config.path("ca.pem"), hex.EncodeToString(sum[:]), s.config.path("admin.token"))
	if trust.Root == nil {
		fmt.Fprintln(w, "  otactl key init     makes the keys that sign firmware; no device can enroll before")
	}
	s.log.Info("ready", "api", s.addresses.API, "device", s.addresses.Device, "mqtt", s.addresses.MQTT)
	return nil
}

// notifyRate is the setting in the words of the service, where 0 stands for its
// default.
func notifyRate(perSecond int) int {
	if perSecond == 0 {
		return fleet.Unpaced
	}
	return perSecond
}
