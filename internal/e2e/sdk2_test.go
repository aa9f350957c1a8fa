package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

// sdk2 is the AWS IoT device SDK v2 with its native core, over one version of
// MQTT: its request and response clients and the older ones.
func sdk2(t *testing.T, s *site, version, id string) {
	s.foreign(id)
	c := s.sdk2(version, id)
	t.Run("shadow", func(t *testing.T) { sdk2Shadow(t, s.of(t), c, id) })
	t.Run("named shadow", func(t *testing.T) { sdk2Named(t, s.of(t), c, id) })
	t.Run("older clients", func(t *testing.T) { sdk2Older(t, s.of(t), c, id) })
	t.Run("jobs", func(t *testing.T) { sdk2Jobs(t, s.of(t), c, id) })
	c.end(t)
}

func (s *site) sdk2(version, id string) *driver {
	s.t.Helper()
	return s.sdk2As(version, id, s.path(id, "device.crt"), s.path(id, "device.key"))
}

// sdk2As connects with any certificate.
func (s *site) sdk2As(version, clientID, cert, key string) *driver {
	s.t.Helper()
	raw, err := json.Marshal(map[string]any{
		"host": "localhost", "port": json.Number(port(s.ports[2])), "ca": s.path("server", "ca.pem"), "cert": cert, "key": key,
		"clientId": clientID, "version": version,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	d := drive(s.t, "SDK v2 "+version, []string{"NODE_PATH=" + modules(s.t)}, "node", "clients/sdk2.js", string(raw))
	d.event("connected", nil)
	return d
}

// call is one request of a client of the SDK, its answer the result.
func (d *driver) call(t *testing.T, group, method string, a args) object {
	t.Helper()
	d.t = t
	return d.must("call", args{"group": group, "method": method, "args": a})
}

// rejected is a call that the server has to refuse.
func (d *driver) rejected(t *testing.T, group, method string, a args) *fault {
	t.Helper()
	d.t = t
	ok, fault := d.try("call", args{"group": group, "method": method, "args": a})
	if fault == nil {
		t.Fatalf("%s.%s %v was accepted: %s", group, method, a, ok)
	}
	return fault
}

func (f *fault) is(t *testing.T, code any, message string) {
	t.Helper()
	if f.Modeled.Code != code || message != "" && f.Modeled.Message != message {
		t.Errorf("rejected with %v %q, want %v %q", f.Modeled.Code, f.Modeled.Message, code, message)
	}
}

func sdk2Shadow(t *testing.T, s *site, c *driver, id string) {
	c.rejected(t, "shadow", "getShadow", args{"thingName": id}).is(t, 404.0, "")

	got := c.call(t, "shadow", "updateShadow", args{"thingName": id, "state": args{"reported": args{"color": "red", "on": true}}})
	got.has(t, map[string]any{"version": 1.0, "state.reported.color": "red", "state.reported.on": true, "state.desired": nil})
	if at, _ := got.at("metadata.reported.color.timestamp").(float64); at < 1.7e9 {
		t.Errorf("metadata is %v", got.at("metadata"))
	}
	c.call(t, "shadow", "getShadow", args{"thingName": id}).has(t, map[string]any{"version": 1.0, "state.reported.color": "red"})
	s.shadow(id).has(t, map[string]any{"version": 1.0, "state.reported.color": "red", "state.reported.on": true})

	c.must("stream", args{"group": "shadow", "method": "createShadowDeltaUpdatedStream", "args": args{"thingName": id}, "name": "delta"})
	c.must("stream", args{"group": "shadow", "method": "createShadowUpdatedStream", "args": args{"thingName": id}, "name": "documents"})
	s.must("shadow", "set", id, "color=green")
	c.event("delta", nil).has(t, map[string]any{"state": map[string]any{"color": "green"}, "version": 2.0})
	documents := c.event("documents", nil)
	documents.has(t, map[string]any{"previous.version": 1.0, "current.version": 2.0, "current.state.desired.color": "green", "previous.state.reported.color": "red"})

	c.rejected(t, "shadow", "updateShadow", args{"thingName": id, "state": args{"reported": args{"color": "blue"}}, "version": 1}).is(t, 409.0, "Version conflict")
	c.call(t, "shadow", "updateShadow", args{"thingName": id, "state": args{"reported": args{"color": "green", "on": nil}}, "version": 2}).
		has(t, map[string]any{"version": 3.0, "state.reported.color": "green"})
	after := c.call(t, "shadow", "getShadow", args{"thingName": id})
	after.has(t, map[string]any{"version": 3.0, "state.delta": nil, "state.reported": map[string]any{"color": "green"}})
	s.shadow(id).has(t, map[string]any{"version": 3.0, "state.reported": map[string]any{"color": "green"}, "state.desired": map[string]any{"color": "green"}})

	c.call(t, "shadow", "deleteShadow", args{"thingName": id}).has(t, map[string]any{"version": 3.0})
	c.rejected(t, "shadow", "getShadow", args{"thingName": id}).is(t, 404.0, "")
	again := c.call(t, "shadow", "updateShadow", args{"thingName": id, "state": args{"reported": args{"color": "white"}}})
	if v, _ := again.at("version").(float64); v <= 3 {
		t.Errorf("the version goes back over a delete: %v", again)
	}
}

func sdk2Named(t *testing.T, s *site, c *driver, id string) {
	named := func(more args) args {
		a := args{"thingName": id, "shadowName": "net:eth0"}
		for k, v := range more {
			a[k] = v
		}
		return a
	}
	c.rejected(t, "shadow", "getNamedShadow", named(nil)).is(t, 404.0, "No shadow exists with name: net:eth0")
	c.must("stream", args{"group": "shadow", "method": "createNamedShadowDeltaUpdatedStream", "args": named(nil), "name": "named delta"})
	c.call(t, "shadow", "updateNamedShadow", named(args{"state": args{"reported": args{"mtu": 1500}, "desired": args{"mtu": 9000}}}))
	c.event("named delta", nil).has(t, map[string]any{"state": map[string]any{"mtu": 9000.0}})
	s.shadow(id, "--name", "net:eth0").has(t, map[string]any{"state.reported.mtu": 1500.0, "state.desired.mtu": 9000.0})
	c.call(t, "shadow", "deleteNamedShadow", named(nil))
	c.rejected(t, "shadow", "deleteNamedShadow", named(nil)).is(t, 404.0, "")
}

// sdk2Older: the SDK's first kind of clients subscribe to each answer themselves.
func sdk2Older(t *testing.T, s *site, c *driver, id string) {
	listen := func(group, method, name string, a args) {
		t.Helper()
		c.t = t
		c.must("listen", args{"group": group, "method": method, "args": a, "name": name})
	}
	send := func(group, method string, a args) {
		t.Helper()
		c.must("send", args{"group": group, "method": method, "args": a})
	}
	thing := args{"thingName": id}
	listen("shadow1", "subscribeToUpdateShadowAccepted", "accepted", thing)
	listen("shadow1", "subscribeToUpdateShadowRejected", "rejected", thing)
	send("shadow1", "publishUpdateShadow", args{"thingName": id, "state": args{"reported": args{"fan": 3}}, "clientToken": "t-1"})
	c.event("accepted", func(o object) bool { return o["clientToken"] == "t-1" }).has(t, map[string]any{"state.reported.fan": 3.0})
	send("shadow1", "publishUpdateShadow", args{"thingName": id, "state": args{"reported": args{"fan": 4}}, "clientToken": "t-2", "version": 1})
	c.event("rejected", func(o object) bool { return o["clientToken"] == "t-2" }).has(t, map[string]any{"code": 409.0, "message": "Version conflict"})
	s.shadow(id).has(t, map[string]any{"state.reported.fan": 3.0})

	listen("jobs1", "subscribeToGetPendingJobExecutionsAccepted", "pending", thing)
	send("jobs1", "publishGetPendingJobExecutions", args{"thingName": id, "clientToken": "t-3"})
	c.event("pending", func(o object) bool { return o["clientToken"] == "t-3" }).
		has(t, map[string]any{"inProgressJobs": []any{}, "queuedJobs": []any{}})
}

func sdk2Jobs(t *testing.T, s *site, c *driver, id string) {
	c.t = t
	thing := args{"thingName": id}
	job := func(jobID string, more args) args {
		a := args{"thingName": id, "jobId": jobID}
		for k, v := range more {
			a[k] = v
		}
		return a
	}
	none := c.call(t, "jobs", "startNextPendingJobExecution", thing)
	if none.at("execution") != nil {
		t.Fatalf("a job out of nothing: %v", none)
	}
	c.rejected(t, "jobs", "describeJobExecution", job("r-nothing", nil)).is(t, "ResourceNotFound", "")
	c.must("stream", args{"group": "jobs", "method": "createNextJobExecutionChangedStream", "args": thing, "name": "next"})

	rollout := s.rollout("1.0.0", "--stages", "100%", "--select", `id = "`+id+`"`)
	c.event("next", func(o object) bool { return o.at("execution.jobId") == rollout }).has(t, map[string]any{
		"execution.status": "QUEUED", "execution.thingName": id, "execution.jobDocument.operation": "install", "execution.jobDocument.name": "app",
	})
	pending := c.call(t, "jobs", "getPendingJobExecutions", thing)
	if queued, _ := pending["queuedJobs"].([]any); len(queued) != 1 || object(queued[0].(map[string]any))["jobId"] != rollout {
		t.Errorf("pending: %v", pending)
	}
	c.call(t, "jobs", "startNextPendingJobExecution", args{"thingName": id, "statusDetails": args{"step": "looking"}}).has(t, map[string]any{
		"execution.jobId": rollout, "execution.status": "IN_PROGRESS", "execution.versionNumber": 2.0, "execution.statusDetails.step": "looking",
	})
	c.call(t, "jobs", "describeJobExecution", job("$next", args{"includeJobDocument": true})).has(t, map[string]any{
		"execution.jobId": rollout, "execution.executionNumber": 1.0, "execution.jobDocument.version": "1.0.0",
	})
	c.rejected(t, "jobs", "updateJobExecution", job(rollout, args{"status": "IN_PROGRESS", "expectedVersion": 1})).is(t, "VersionMismatch", "")
	c.call(t, "jobs", "updateJobExecution", job(rollout, args{
		"status": "IN_PROGRESS", "expectedVersion": 2, "statusDetails": args{"step": "fetching"}, "includeJobExecutionState": true, "includeJobDocument": true,
	})).has(t, map[string]any{"executionState.status": "IN_PROGRESS", "executionState.versionNumber": 3.0, "jobDocument.name": "app"})
	c.call(t, "jobs", "updateJobExecution", job(rollout, args{"status": "SUCCEEDED", "expectedVersion": 3}))
	c.event("next", func(o object) bool { return o.at("execution") == nil })
	c.rejected(t, "jobs", "updateJobExecution", job(rollout, args{"status": "FAILED"})).is(t, "InvalidStateTransition", "")
	r := s.ends(rollout, "COMPLETED")
	if r.Stages[0].Counts.Finished["succeeded"] != 1 {
		t.Errorf("the server counts %+v", r.Stages)
	}
}

// sdk2Provisioning: devices that come with one claim certificate for all get
// their own by the SDK's fleet provisioning client, over one version of MQTT,
// and are devices like any other then.
func sdk2Provisioning(t *testing.T, s *site, version, id string) {
	dir := t.TempDir()
	claim := filepath.Join(dir, "claim")
	s.must("token", "create", "--uses", "1", "--hardware", hardware, "--device", "sn-*", "--claim-cert", claim, "-q")
	key, csr := keyAndRequest(t, dir)
	c := s.sdk2As(version, id, claim+".pem", claim+".key")

	c.rejected(t, "identity", "createCertificateFromCsr", args{"certificateSigningRequest": "none"})
	made := c.call(t, "identity", "createCertificateFromCsr", args{"certificateSigningRequest": csr})
	register := func(name string) args {
		return args{"templateName": "default", "certificateOwnershipToken": made["certificateOwnershipToken"], "parameters": args{"SerialNumber": name}}
	}
	c.rejected(t, "identity", "registerThing", register("gw-of-somebody-else"))
	c.call(t, "identity", "registerThing", register(id)).has(t, map[string]any{"thingName": id, "deviceConfiguration.hardware": hardware})
	c.rejected(t, "identity", "registerThing", register(id+"x"))
	c.end(t)

	cert := filepath.Join(dir, "device.crt")
	text, _ := made["certificatePem"].(string)
	if err := os.WriteFile(cert, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	device := s.sdk2As(version, id, cert, key)
	device.call(t, "shadow", "updateShadow", args{"thingName": id, "state": args{"reported": args{"born": true}}})
	device.end(t)
	s.shadow(id).has(t, map[string]any{"state.reported.born": true})
	var d object
	s.get(&d, "device", "show", id)
	d.has(t, map[string]any{"hardware": hardware})
}

// keyAndRequest makes a P-256 key, in a file, and a certificate request for it.
func keyAndRequest(t *testing.T, dir string) (keyFile, csr string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(dir, "device.key")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}))
}
