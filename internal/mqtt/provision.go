package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/otad/otad/internal/fleet"
)

// MaxProvisionRequest bounds the payload of a provisioning request, bytes.
const MaxProvisionRequest = 32 << 10

// MaxParameters is how many parameters a claim may send, and
// MaxParameterBytes how long each may be.
const (
	MaxParameters     = 16
	MaxParameterBytes = 1024
)

type provisionRequest struct {
	CSR        string            `json:"certificateSigningRequest"`
	Ownership  string            `json:"certificateOwnershipToken"`
	Parameters map[string]string `json:"parameters"`
}

// The answers, as AWS IoT documents them for fleet provisioning.
type (
	provisionCertificate struct {
		ID        string `json:"certificateId"`
		PEM       string `json:"certificatePem"`
		Ownership string `json:"certificateOwnershipToken"`
	}
	provisionDevice struct {
		Configuration map[string]string `json:"deviceConfiguration"`
		Name          string            `json:"thingName"`
	}
	provisionRejected struct {
		Status  int    `json:"statusCode"`
		Code    string `json:"errorCode"`
		Message string `json:"errorMessage"`
	}
)

// provision answers a claim: a device that is yet to be. Who it is says the
// broker, by Sender; without that nothing is done and nothing answered, since
// others would read the answer.
func (p *Endpoint) provision(ctx context.Context, r request, m Message) error {
	if !p.Provisioning || m.Sender == "" {
		p.log.Warn("provisioning is closed with this broker", "topic", m.Topic)
		return nil
	}
	key := "claim " + m.Sender // no device's
	if !p.flights.begin(key) {
		return p.rejectProvision(ctx, r, m, provisionRejected{http.StatusTooManyRequests, "Throttled", "too many requests are under way for this claim; try again"})
	}
	defer p.flights.end(key)
	answer, err := p.provisionAnswer(ctx, r, m)
	if err == nil {
		return p.replyProvision(ctx, r, m, "/accepted", answer)
	}
	why, ok := provisionFault(r, err)
	if !ok && ctx.Err() == nil {
		p.log.Error("provisioning failed", "topic", m.Topic, "trace", m.Trace, "claim", m.Sender, "error", err)
	}
	if !ok && m.QoS > 0 {
		return err // it comes again
	}
	if ok {
		p.log.Warn("provisioning refused", "topic", m.Topic, "trace", m.Trace, "claim", m.Sender, "error", err)
	}
	return p.rejectProvision(ctx, r, m, why)
}

func (p *Endpoint) provisionAnswer(ctx context.Context, r request, m Message) (any, error) {
	req, err := decodeProvision(wireFormats[r.format], m.Payload)
	if err != nil {
		return nil, err
	}
	switch r.op {
	case "create":
		return nil, errServerKey
	case "create-from-csr":
		c, err := p.fleet.CertificateFromCSR(ctx, m.Sender, []byte(req.CSR))
		return provisionCertificate{c.ID, string(c.PEM), c.Ownership}, err
	}
	d, err := p.fleet.Provision(ctx, fleet.Provisioning{
		Claim: m.Sender, Template: r.name, Ownership: req.Ownership, Parameters: req.Parameters,
	})
	return provisionDevice{p.configuration(d), d.ID}, err
}

// configuration is what the device may want to know beside its name.
func (p *Endpoint) configuration(d fleet.Device) map[string]string {
	c := map[string]string{}
	for name, value := range map[string]string{"hardware": d.Hardware, "mqttUrl": p.fleet.MQTTURL, "deviceUrl": p.fleet.DeviceURL} {
		if value != "" {
			c[name] = value
		}
	}
	return c
}

// Faults of a request that fleet does not see.
var (
	errPayload   = errors.New("the payload can not be read")
	errServerKey = errors.New("this server makes no private keys: they are made on the device and stay there; use create-from-csr")
)

func decodeProvision(f wireFormat, payload []byte) (provisionRequest, error) {
	var req provisionRequest
	if len(payload) > MaxProvisionRequest {
		return req, fmt.Errorf("%w: %d bytes, at most %d", errPayload, len(payload), MaxProvisionRequest)
	}
	if len(payload) == 0 {
		return req, nil // create has none
	}
	if err := f.read(payload, &req); err != nil {
		return req, fmt.Errorf("%w: %w", errPayload, err)
	}
	if len(req.Parameters) > MaxParameters {
		return req, fmt.Errorf("%w: %d parameters, at most %d", errPayload, len(req.Parameters), MaxParameters)
	}
	for name, value := range req.Parameters {
		if len(name)+len(value) > MaxParameterBytes {
			return req, fmt.Errorf("%w: parameter %.40q is longer than %d bytes", errPayload, name, MaxParameterBytes)
		}
	}
	return req, nil
}

// provisionFault is an error in the protocol's words; false for a fault of ours.
func provisionFault(r request, err error) (provisionRejected, bool) {
	invalid := "InvalidParameters"
	if r.op == "create-from-csr" {
		invalid = "InvalidCsr"
	}
	for _, row := range []struct {
		class  error
		status int
		code   string
	}{
		{errPayload, http.StatusBadRequest, "InvalidPayload"},
		{errServerKey, http.StatusForbidden, "Forbidden"},
		{fleet.ErrOwnership, http.StatusBadRequest, "InvalidCertificateOwnershipToken"},
		{fleet.ErrInvalid, http.StatusBadRequest, invalid},
		{fleet.ErrDenied, http.StatusForbidden, "Forbidden"},
		{fleet.ErrNotFound, http.StatusNotFound, "ResourceNotFound"},
		{fleet.ErrConflict, http.StatusConflict, "Conflict"},
		{fleet.ErrBusy, http.StatusTooManyRequests, "Throttled"},
	} {
		if errors.Is(err, row.class) {
			return provisionRejected{row.status, row.code, err.Error()}, true
		}
	}
	return provisionRejected{http.StatusInternalServerError, "InternalError", "the server can not do it now; try again later"}, false
}

func (p *Endpoint) rejectProvision(ctx context.Context, r request, m Message, why provisionRejected) error {
	return p.replyProvision(ctx, r, m, "/rejected", why)
}

func (p *Endpoint) replyProvision(ctx context.Context, r request, m Message, suffix string, answer any) error {
	b, err := wireFormats[r.format].encode(answer)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return p.reply(ctx, m, m.Topic+suffix, b)
}
