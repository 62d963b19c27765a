"""LitServe: litserve_server.py MODEL PORT"""

import sys

import litserve
import work


class Scores(litserve.LitAPI):
    def setup(self, device):
        self.engine = work.session(MODEL)

    def decode_request(self, request):
        return work.decode(request)

    def predict(self, x):
        return work.answer(self.engine, MODEL, x)

    def encode_response(self, output):
        return work.encode(MODEL, output)


MODEL, PORT = sys.argv[1], int(sys.argv[2])

if __name__ == "__main__":
    server = litserve.LitServer(Scores(), accelerator="cpu", devices=1, workers_per_device=work.INSTANCES)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
