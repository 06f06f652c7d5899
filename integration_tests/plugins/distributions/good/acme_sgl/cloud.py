"""A second adapter of the same distribution, whose framework is an extra that nobody has installed."""

from sgl_core.plugins import AdapterSpec, hookimpl


@hookimpl
def sgl_adapter():
    return AdapterSpec("acme-cloud", api_version=1, create=create, requires=("acme_cloud_client",), extra="cloud")


def create(**options):
    import acme_cloud_client

    return acme_cloud_client.Client(**options)
