-- SPDX-License-Identifier: Apache-2.0
-- A store as version 1 wrote it (commit b9cd5cd), for the programs that come after it to read.
PRAGMA journal_mode = WAL;
BEGIN TRANSACTION;
CREATE TABLE containers (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
INSERT INTO "containers" VALUES('cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','web','{"id":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","name":"web","created":"2026-11-24T12:00:00Z","argv":["sh","-c","echo ''\u00fc''\n"],"networks":[{"network":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","aliases":["db"]}],"links":[{"server":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","alias":"x"}],"extra_hosts":[["a","10.0.0.1"]],"labels":{"k":""}}');
CREATE TABLE endpoints (
    id TEXT PRIMARY KEY,
    network_id TEXT NOT NULL REFERENCES networks(id) DEFERRABLE INITIALLY DEFERRED,
    sandbox_id TEXT NOT NULL REFERENCES sandboxes(id) DEFERRABLE INITIALLY DEFERRED,
    number INTEGER NOT NULL UNIQUE, slot INTEGER NOT NULL,
    ifname TEXT NOT NULL, host_ifname TEXT NOT NULL UNIQUE,
    mac TEXT NOT NULL, ipv4 TEXT, ipv6 TEXT, body TEXT NOT NULL,
    UNIQUE (network_id, sandbox_id), UNIQUE (sandbox_id, ifname), UNIQUE (network_id, slot),
    UNIQUE (network_id, ipv4), UNIQUE (network_id, ipv6), UNIQUE (network_id, mac)
);
INSERT INTO "endpoints" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',7,0,'eth0','vethbbbbbbb','02:42:0a:00:00:02','10.0.0.2','fd00::2','{"id":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","network_id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","sandbox_id":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","number":7,"slot":0,"ifname":"eth0","host_ifname":"vethbbbbbbb","mac":"02:42:0a:00:00:02","ipv4":"10.0.0.2/16","ipv6":"fd00::2/64","aliases":["db"],"links":[{"server":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","alias":"x"}],"gateway4":true,"ports":[{"proto":"tcp","host_ip":"::1","host_port":8000,"container_port":80,"count":2}],"exposed":[[80,"tcp"]]}');
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('endpoint',1);
INSERT INTO "meta" VALUES('installation','b156e9832ff2d5e4a8133f573a8e491b');
INSERT INTO "meta" VALUES('note net/ipv4/ip_local_reserved_ports','');
CREATE TABLE networks (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, number INTEGER UNIQUE, device TEXT UNIQUE,
    body TEXT NOT NULL
);
INSERT INTO "networks" VALUES('cd3f238c4fe8898fc4cec304680024a1a343feb41451806a43df431c33c0eac9','bridge',1,'dp0','{"id":"cd3f238c4fe8898fc4cec304680024a1a343feb41451806a43df431c33c0eac9","name":"bridge","number":1,"created":"2026-11-26T23:38:04.153867Z","device":"dp0","predefined":true,"phase":"ready"}');
INSERT INTO "networks" VALUES('7eb685624eb6635a69f9658638144eae005db37067efe922d7f42f7e383116f4','host',NULL,NULL,'{"id":"7eb685624eb6635a69f9658638144eae005db37067efe922d7f42f7e383116f4","name":"host","number":0,"driver":"host","created":"2026-11-26T23:38:04.153867Z","ipv4":false,"predefined":true,"phase":"ready","realised":true}');
INSERT INTO "networks" VALUES('23c4adc0ddebacc20975d96a89f9c4dc6ad897702aa1c88bb86e8bf63712d111','none',NULL,NULL,'{"id":"23c4adc0ddebacc20975d96a89f9c4dc6ad897702aa1c88bb86e8bf63712d111","name":"none","number":0,"driver":"null","created":"2026-11-26T23:38:04.153867Z","ipv4":false,"predefined":true,"phase":"ready","realised":true}');
INSERT INTO "networks" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','br1',2,NULL,'{"id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","name":"br1","number":2,"created":"2026-11-24T12:00:00Z","subnets":[{"prefix":"10.0.0.0/16","gateway":"10.0.0.1","ip_range":"10.0.4.0/24","aux":{"printer":"10.0.0.7"},"configured":true},{"prefix":"fd00::/64","gateway":"fd00::1"}],"labels":{"a":"b"},"options":{"com.docker.network.driver.mtu":"1400"}}');
CREATE TABLE sandboxes (id TEXT PRIMARY KEY, body TEXT NOT NULL);
INSERT INTO "sandboxes" VALUES('cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','{"id":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","key":"/proc/1/ns/net","phase":"ready"}');
COMMIT;
PRAGMA application_id = 1685087092;
PRAGMA user_version = 1;
