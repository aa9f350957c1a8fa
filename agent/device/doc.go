// Package device puts an agent together on one machine: its directory, its
// identity, the lines to the server and the boot driver for files. otagent and
// "otactl agent" are thin covers over it.
//
// The directory, mode 0700:
//
//	agent.json              who the device is and where its server is; written last at enrollment
//	device.key  device.crt  its key (PKCS#8, 0600) and certificate chain, PEM
//	ca.pem  root.json       what the enrollment token pinned: the server's CA, the first trust root
//	slots/ current try      the boot driver's, see agent/boot/file
//	state/                  the agent's: journal, trust, outbox, status.json
//	agent.lock              held while an agent runs or enrolls
//
// The parties: the operator who hands over the token, the server, and whoever
// can read the directory, who is the device. It decides nothing about updates;
// that is package agent's.
package device
